"""What `mtl verify` found, as text for a terminal."""

from mtl.verification import FAILED, Verification
from mtl.verification_compare import Difference
from mtl.verification_files import Inventory


def verification_tables(found: Verification) -> str:
    """Formats a verification as lines of text: what is downloaded, what may run, the loaders, and the verdict."""
    at = f" at {found.revision[:12]}" if found.revision else ""
    lines = [f"{found.source}{at}", *_files(found.inventory), *_code(found.inventory), *_loaders(found)]
    lines += [f"\nwrong with the files:\n  {problem}" for problem in found.inventory.problems]
    return "\n".join([*lines, "", _verdict(found)])


def _files(inventory: Inventory) -> list[str]:
    lines = [f"\ndownloaded: {len(inventory.files)} files, {_size(inventory.total_size)}"]
    return lines + [f"  {_size(file.size):>10}  {file.kind:<8} {file.path}" for file in inventory.files]


def _code(inventory: Inventory) -> list[str]:
    if not inventory.code:
        return ["\nrun: nothing; there is no code"]
    lines = ["\nrun, where it is trusted, and what it imports beside the standard library"]
    for file in inventory.code:
        flag = f"  UNEXPECTED: {', '.join(file.unexpected)}" if file.unexpected else ""
        lines.append(f"  {file.path:<28} {', '.join(file.packages) or '-'}{flag}")
    return lines


def _loaders(found: Verification) -> list[str]:
    width = max(len(check.name) for check in found.checks)
    lines = ["\nloaded by"]
    for check in found.checks:
        told = "the reference" if check.is_reference else _difference(check.difference)
        message = "" if check.difference is not None and not check.message else check.message
        lines.append(
            f"  {check.name:<{width}}  {check.state:<15}  {'  '.join(filter(None, (told, message)))}".rstrip()
        )
    return lines


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if difference.is_cosine:
        return f"mean cosine {difference.value:.4f} (at least {difference.bound})"
    return f"difference {difference.value:.1e} (at most {difference.bound:.0e})"


def _verdict(found: Verification) -> str:
    if not found.is_ok:
        is_wrong = found.inventory.problems or FAILED in [check.state for check in found.checks]
        return "FAILED: see above." if is_wrong else "FAILED: no loader was run."
    return "All is well." if found.is_complete else "What was run is well; some loaders were not run."


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.1f} KiB"
