"""Reads the text of PDF files with pdftotext, one process a file, two at a time."""

from snakepit import OneShotAdapter, SnakepitExecutor


def make_pdf(text: str) -> bytes:
    """Return a PDF of one page with one line of text."""
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode("latin-1")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R"
        b" /Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
    ]
    document, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(document))
        document += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    end = b"trailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(document))
    return document + b"xref\n0 %d\n0000000000 65535 f \n%b%b" % (len(objects) + 1, table, end)


def main() -> None:
    """The bytes go in through stdin and the text comes out of stdout; what is no PDF has a status and a reason."""
    files = {f"letter {number}": make_pdf(f"Dear reader number {number}") for number in range(1, 4)}
    files["a picture"] = b"\x89PNG, certainly no PDF"
    with SnakepitExecutor(OneShotAdapter(["pdftotext", "-", "-"]), max_workers=2, timeout=30) as pool:
        results = pool.map("run", [{"input": content} for content in files.values()])
        for name, result in zip(files, results, strict=True):
            if result["exit_code"] == 0:
                print(f"{name}: {result['stdout'].strip()}")
            else:
                print(f"{name}: exit code {result['exit_code']}, {result['stderr'].splitlines()[0]}")


if __name__ == "__main__":
    main()
