"""What can go wrong with a server on this machine, in words that say what to do."""


class SandboxError(Exception):
    """A server of the sandbox could not be prepared, started or stopped."""


class MissingPart(SandboxError):
    """A program that this machine lacks; the text names it, its Debian package and how to get it."""

    def __init__(self, *, part: str, package: str, hint: str | None = None) -> None:
        self.part = part
        self.package = package
        super().__init__(f"{part} is missing: {hint or f'apt-get install {package}'}")
