"""A document of which several programs write a section each, one for every kind of machine, between two comments; and what it says of the machine."""

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


def kind(machine):
    """What decides speed most: a document keeps the numbers of every kind."""
    has = {flag.split("_")[0] for flag in machine["isa"]}
    return "AMX" if "amx" in has else "AVX-512" if "avx512f" in has else "AVX2"


def csv_beside(path, machine):
    """The file of numbers beside a document, for this kind of machine."""
    return path.with_name(f"{path.stem}-{kind(machine).lower().replace('-', '')}.csv")


def of_kind(machine, name, lines):
    """The name and lines of a section that stands once for every kind of machine; the first line is its heading."""
    return f"{name}, {kind(machine)}", [f"{lines[0]}, {kind(machine)}", *lines[1:]]


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
