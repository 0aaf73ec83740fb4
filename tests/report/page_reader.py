"""Reading a report as a browser does."""

import html.parser


class Reader(html.parser.HTMLParser):
    """Checks that tags nest, and collects what a reader sees, the ids, and everything that could reach the network."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "link", "img"})

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.tags, self.ids, self.reaches = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "srcset") and not (value or "").startswith("#"):
                self.reaches.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def shown(self):
        return " ".join(" ".join(self.text).split())


def read(path):
    return Reader(path.read_text(encoding="utf-8"))
