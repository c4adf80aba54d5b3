"""Texts that would harm a page that took them for more than text."""

HOSTILE = [
    "<script>window.harmed = 1</script>",
    "</script><script>window.harmed = 1</script>",
    "<!--<script>",
    "--> ]]> </style></title></textarea></template>",
    '<img src=x onerror="window.harmed = 1">',
    "<svg onload=window.harmed=1><use href=http://127.0.0.1:9/x#y></svg>",
    '" onmouseover="window.harmed = 1" x="',
    "' autofocus onfocus='window.harmed = 1",
    "javascript:window.harmed=1",
    "{{ 7 * 7 }} {% raw %} {# #} ${7 * 7} <%= 7 * 7 %> {{constructor.constructor('window.harmed=1')()}}",
    "&lt;b&gt; &amp;amp; &#60;script&#62;",
    "<link rel=stylesheet href=http://127.0.0.1:9/x.css><meta http-equiv=refresh content=0;url=http://127.0.0.1:9/>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 \x08\x08\x08",
    "left \u202eesrever\u202c right \u2066isolated\u2069 \u200fmark",
    "line\u2028separator\u2029paragraph\ufeff",
    "back`tick ${window.harmed = 1} \\u003cscript\\u003e \\",
    "__proto__",
    "\r\n\t\v\f\x85 ends",
]
"""Markup, scripts, template braces, terminal codes, changes of direction, and separators."""

HALVES = "half \ud800 a pair \udfff"
"""Halves of surrogate pairs, which JSON may hold and UTF-8 may not."""

LONG_LINE = "x" * (1 << 20)
"""A line of one megabyte."""
