"""A document of which several programs write a section each, between two comments; and what every section says of the machine."""

import datetime
import re
import sys


def about(machine, count, unit="threads"):
    """The sentence that says where and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{datetime.date.today()}, {machine['cpu']}, {machine['cores']} cores, {count} {unit}. "
        f"ISA: {', '.join(machine['isa'])}. {versions}."
    )


def command():
    """What was typed, as a block."""
    return "```sh\npython " + " ".join(sys.argv) + "\n```"


def section(path, name, lines):
    """Replaces the section `name` of the document, or adds it at the end; the rest of the file is left as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begin, end = f"<!-- {name}: written by benches/peers -->", f"<!-- end of {name} -->"
    text = "\n".join([begin, "", *lines, "", end])
    old = path.read_text() if path.exists() else "# Measured\n"
    if begin in old:
        old = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: text, old, flags=re.DOTALL)
    else:
        old = old.rstrip("\n") + "\n\n" + text + "\n"
    path.write_text(old)
