"""Builds an image for each stage and for the service, and says how large they are: `python -m images.build --help`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from components.shared.runtime.stage_interface import read, stages

ROOT = Path(__file__).resolve().parents[1]
SERVE = "serve"
LABEL = "org.opencontainers.image."


def names() -> list[str]:
    """Everything that has an image: the stages, and the service."""
    return [*stages(), SERVE]


def reference(name: str, registry: str = "", tag: str = "latest") -> str:
    """What an image is called: registry/medloop-<name>:tag."""
    return f"{registry.rstrip('/') + '/' if registry else ''}medloop-{name}:{tag or 'latest'}"


def labels(name: str, source: str = "") -> dict[str, str]:
    """What an image says of itself. It depends on the commit alone, so that the same code gives the same labels."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = {
        "title": f"medloop-{name}",
        "description": "The HTTP service of medloop." if name == SERVE else read(name).summary,
        "version": project["version"],
        "licenses": project.get("license", ""),
        "source": source,
        "revision": _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "created": _git("show", "--no-patch", "--format=%cI", "HEAD"),
    }
    return {LABEL + key: value for key, value in about.items() if value}


def _git(*arguments: str) -> str:
    """What git says of this checkout, or nothing where there is no git or no checkout."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def build(name: str, image: str, base: str, source: str, hashes: str = "yes") -> None:
    """Build one image. What the builder says is kept for the error: quiet, one of Docker's two tells nothing of why."""
    command = ["docker", "build", "--force-rm", "--tag", image]
    command += ["--file", f"images/{'serve' if name == SERVE else 'stage'}.Dockerfile"]
    command += ["--build-arg", f"BASE={base}"] if base else []
    command += ["--build-arg", f"HASHES={hashes}"]
    command += [] if name == SERVE else ["--build-arg", f"STAGE={name}"]
    for key, value in labels(name, source).items():
        command += ["--label", f"{key}={value}"]
    subprocess.run([*command, "."], cwd=ROOT, capture_output=True, text=True, check=True)


def size(image: str) -> int:
    """The bytes of an image, those of its base included."""
    command = ["docker", "image", "inspect", "--format", "{{.Size}}", image]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main(argv: list[str]) -> int:
    """Build what the arguments name, or push it; gives the exit status."""
    parser = argparse.ArgumentParser("python -m images.build", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a stage, or serve; all by default")
    parser.add_argument("--tag", default="latest", help="default latest")
    parser.add_argument("--registry", default="", help="what stands before the name, such as registry.example/medloop")
    parser.add_argument(
        "--base", default="", help="the Python image to build on, best by digest (default: see images/)"
    )
    parser.add_argument("--hashes", default="yes", choices=("yes", "no"), help="no: packages by version, unchecked")
    parser.add_argument("--train-base", default="", help="the same for train alone (default: that of the others)")
    parser.add_argument("--source", default="", help="the address of the source, for the label")
    parser.add_argument("--push", action="store_true", help="push what was built before, and build nothing")
    asked = parser.parse_args(argv)
    wanted = asked.names or names()
    if unknown := sorted(set(wanted) - set(names())):
        parser.error(f"there is no image of {unknown[0]!r}; there are: {', '.join(names())}")
    if asked.push and not asked.registry:
        parser.error("no registry is named to push to. Say which: make push REGISTRY=registry.example/medloop")
    images = {name: reference(name, asked.registry, asked.tag) for name in wanted}
    try:
        for name, image in images.items():
            begun = time.perf_counter()
            if asked.push:
                subprocess.run(["docker", "push", "--quiet", image], capture_output=True, text=True, check=True)
                print(image, flush=True)
                continue
            build(name, image, (name == "train" and asked.train_base) or asked.base, asked.source, asked.hashes)
            print(f"{image}  {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        if not asked.push:
            print("\n| image | size |\n|---|---|")
            for image in images.values():
                print(f"| {image} | {size(image) / 1e6:,.0f} MB |")
    except FileNotFoundError:
        sys.stderr.write("There is no docker command on this machine. Install Docker, or what answers by its name.\n")
        return 1
    except subprocess.CalledProcessError as error:
        command = f"docker {error.cmd[1]}"
        sys.stderr.write(f"{error.stdout or ''}{error.stderr or ''}"[-3000:])
        sys.stderr.write(f"\n{image}: `{command}` ended with {error.returncode}; its last words stand above.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
