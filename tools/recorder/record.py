#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Record page faults of a running KVM, from Debian packages alone, on a CPU that is software.

    tools/recorder/record.py [--kernel KERNEL] [--cpu amd|intel] [--out DIR] [--work DIR]
                             [--scenario FILE ...] [--boot-args TEXT] [--debian RELEASE]

KERNEL is `prebuilt` (Debian's newest kernel from 6.12 on that this machine's package sources have), a Debian
release such as `6.12.117+deb12-amd64`, `self` (a small kernel built from Debian's newest kernel source, with
software-protected VMs), or `posted` (the same with the check of the synthetic bits where the patch as posted has
it).  The machine is emulated: AMD by QEMU (TCG), Intel by Bochs.  /dev/kvm is never opened.

No privilege is needed.  Packages that are not installed are downloaded and unpacked under DIR (--work, default
build/record) and run from there; the machine's own package lists are not touched.  Beside the recording stands
`provenance.json`: packages, digests, versions, command lines.  README.md tells the rest.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OLDEST = (6, 12)
"""Kernels before this one have no probes on struct arguments (fprobe events)."""

NESTED = (
    *("nested", "nested-swprot", "nested-np0", "nested-np0-swprot"),
    *("nested-prefetch", "nested-emulated", "nested-dirty"),
)
SELFTESTS = ("selftest-exits", "selftest-conversions", "selftest-conversions-punch", "selftest-holes",
             "selftest-holes-precise")  # fmt: skip
SCENARIOS = {
    "amd": (
        *("default", "swprot", "inject", "inject-swprot", "implicit", "tables"),
        *(*NESTED, "nested-inject", "nested-inject-swprot", "par", "par-swprot", *SELFTESTS),
    ),
    "intel": (
        *("default", "swprot", "inject-ept", "inject-ept-swprot", "implicit", "fastmmio", "tables"),
        *(*NESTED, "nested-noad", *SELFTESTS),
    ),
}
NEEDED = {
    "amd": ("qemu-system-x86",),
    "intel": ("bochs", "bochs-term", "bochsbios", "vgabios", "isolinux", "syslinux-common", "xorriso"),
    "module": ("gcc", "libc6-dev", "make", "binutils", "pahole", "libelf1"),
    "build": ("flex", "bison", "bc", "libelf-dev", "zlib1g-dev", "m4", "cpio", "xz-utils"),
}
"""Debian packages: of the emulators, for the guest program and the module, for a kernel of one's own."""

BOOT_ARGS = (
    "console=ttyS0,115200 panic=-1 reboot=t loglevel=4 nokaslr norandmaps no_hash_pointers tsc=reliable "
    "kvm.force_emulation_prefix=1"
)
"""No addresses at random, pointers shown, and a prefix with which the guest asks KVM to emulate an instruction."""

START = 1767225600
"""The machine's clock when it starts: 2026-01-01.  It then counts instructions: equal inputs give equal bytes."""


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"record: {text}", flush=True)


def lacking(text: str) -> NoReturn:
    """End with status 3: something that is fetched, or the means to fetch it, is not there."""
    print(f"record: {text}", file=sys.stderr)
    sys.exit(3)


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def serving(text: str, release: str) -> str:
    """Keep of a file of apt's sources what serves binary packages of one release.

    Its updates, security and backports belong to it.  Of the two forms of such a file, paragraphs of fields are
    known by their `Types:`.  Mirror, key and options stay as they stand.

    Source: sources.list(5).
    """

    def wanted(suite: str) -> bool:
        return re.split("[-/]", suite)[0] == release

    text = re.sub(r"^[ \t]*#.*\n?", "", text, flags=re.M)
    if not re.search(r"^types:", text, re.M | re.I):
        lines = [re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?\S+\s+(\S+)", line) for line in text.splitlines()]
        return "".join(f"{line.string}\n" for line in lines if line and wanted(line[1]))
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {
            name.lower(): value for name, value in re.findall(r"^(\S+?):(.*(?:\n[ \t].*)*)", paragraph, re.M)
        }
        suites = " ".join(suite for suite in fields.get("suites", "").split() if wanted(suite))
        off = fields.get("enabled", "").strip().lower() in ("no", "false", "without", "off", "disable")
        if suites and not off and "deb" in fields.get("types", "").split():
            fields |= {"types": " deb", "suites": f" {suites}"}
            kept.append("".join(f"{name}:{value}\n" for name, value in fields.items()))
    return "\n".join(kept)


def machine_s_release() -> str:
    """Return the codename of the Debian release that this machine is, or is made from; empty if it has none."""
    try:
        known = platform.freedesktop_os_release()
    except OSError:
        return ""
    return known.get("DEBIAN_CODENAME") or known.get("VERSION_CODENAME", "")


class Scratch:
    """A folder with all that is downloaded, unpacked and built, and what it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root, self.debs = folder, folder / "root", folder / "debs"
        for made in (
            self.root,
            self.debs,
            folder / "lists" / "partial",
            folder / "cache" / "archives" / "partial",
        ):
            made.mkdir(parents=True, exist_ok=True)
        self.release = ""
        """Where packages come from: this release's sources alone; empty: all sources of the machine."""
        self.packages: dict[str, dict[str, str]] = {}
        self.extra: dict[str, str] = {}

    @property
    def env(self) -> dict[str, str]:
        """The environment in which unpacked programs find what belongs to them."""
        libraries = [str(self.root / part) for part in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")]
        programs = [str(self.root / part) for part in ("usr/bin", "usr/sbin", "bin")]
        return {
            **os.environ,
            "PATH": ":".join([*programs, os.environ.get("PATH", "/usr/bin:/bin"), "/usr/sbin:/sbin"]),
            "LD_LIBRARY_PATH": ":".join(libraries),
            "QEMU_MODULE_DIR": f"{self.find('usr/lib/x86_64-linux-gnu/qemu')}",
            "LTDL_LIBRARY_PATH": f"{self.find('usr/lib/x86_64-linux-gnu/bochs/plugins')}",
            "BXSHARE": f"{self.find('usr/share/bochs')}",
            "M4": f"{self.find('usr/bin/m4')}",
            "BISON_PKGDATADIR": f"{self.find('usr/share/bison')}",
            "LC_ALL": "C",
            **self.extra,
        }

    def find(self, path: str) -> Path:
        """Return a file of a package: unpacked here, else installed."""
        return self.root / path if (self.root / path).exists() else Path("/") / path

    def run(
        self,
        *command: object,
        cwd: Path | None = None,
        apt: bool = False,
        limit: int | None = None,
        failed: str = "",
    ) -> str:
        """Run a program to its end and return what it printed; stop with its last lines if it fails.

        `failed` says what it means that it fails.
        """
        words = [str(word) for word in command]
        try:
            done = subprocess.run(
                words, cwd=cwd or self.folder, env=os.environ | {"LC_ALL": "C"} if apt else self.env,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=limit,
            )  # fmt: skip
        except FileNotFoundError:
            lacking(f"{words[0]!r} is not there; Debian's package of that name has it")
        except subprocess.TimeoutExpired:
            sys.exit(f"record: {words[0]!r} did not end within {limit} seconds")
        if done.returncode:
            end = lacking if apt else sys.exit
            last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-12:])
            failed = failed or f"{' '.join(words[:6])} … ended with {done.returncode}"
            end(f"{'' if apt else 'record: '}{failed}:\n{last}")
        return done.stdout

    # --- packages ---

    def apt(self, program: str, *words: object, cwd: Path | None = None, failed: str = "") -> str:
        """Run apt-get or apt-cache with package lists and a cache of our own, and the sources that were chosen."""
        own = {
            "Dir::State::lists": self.folder / "lists", "Dir::Cache": self.folder / "cache",
            "Debug::NoLocking": "1", "APT::Sandbox::User": "root", "Acquire::Languages": "none",
            "APT::Update::Error-Mode": "any",
        }  # fmt: skip
        if self.release:
            parts = self.folder / "sources"
            own |= {
                "Dir::Etc::sourcelist": "/dev/null",
                "Dir::Etc::sourceparts": parts,
                "APT::Default-Release": "",
            }
        options = [part for name, value in own.items() for part in ("-o", f"{name}={value}")]
        return self.run(program, "-qq", *options, *words, cwd=cwd, apt=True, failed=failed)

    def choose(self, release: str) -> str:
        """Take the packages of one release only, and return its sources; without a name, of the machine's release.

        Sources that mix releases offer packages that do not fit together, nor to what is installed.  If none
        names the machine's release (they may say `stable`, or `sid`), all are taken as they are.
        """
        places = ("list", "Dir::Etc::sourcelist/f", "parts", "Dir::Etc::sourceparts/d")
        said = shlex.split(self.run("apt-config", "shell", *places, apt=True))
        found = [Path(word.partition("=")[2]) for word in said]
        inside = sorted(
            path for place in found for path in place.glob("*") if path.suffix in (".list", ".sources")
        )
        texts = [path.read_text() for path in [*found, *inside] if path.is_file()]
        where = " and ".join(map(str, found))
        if not any(texts):
            lacking(f"apt has no package sources: there are none in {where}")
        asked = release or machine_s_release()
        kept = [serving(text, asked) for text in texts if asked]
        if not any(kept):
            if release:
                lacking(f"no package source is of {release}: there is none in {where}")
            return "".join(texts)
        self.release = asked
        shutil.rmtree(self.folder / "sources", ignore_errors=True)
        (self.folder / "sources").mkdir()
        for number, text in enumerate(kept):
            form = "sources" if text.startswith("types:") else "list"
            (self.folder / "sources" / f"{number}.{form}").write_text(text)
        return "".join(kept)

    def update(self, release: str = "") -> None:
        """Fetch the package lists, unless they are of today and of these sources."""
        sources = self.choose(release)
        stamp = self.folder / "lists" / "fetched"
        old = not stamp.exists() or time.time() - stamp.stat().st_mtime > 86400
        if old or stamp.read_text() != sources:
            say(f"fetching package lists of {self.release or 'all sources'}")
            trouble = "package lists cannot be fetched: no network, or a mirror that does not serve what is asked for"
            self.apt("apt-get", "update", failed=trouble)
            stamp.write_text(sources)

    def missing(self, names: list[str]) -> list[tuple[str, str]]:
        """Name the packages, with versions, that would have to be installed for `names`."""
        trouble = (
            f"{', '.join(names)} cannot be had together from {self.release or 'all sources'}, beside what is installed "
            "(a machine that follows another release than it says: --debian RELEASE, make record DEBIAN=RELEASE)"
        )
        simulate = ("apt-get", "install", "--simulate", "--no-install-recommends")
        said = self.apt(*simulate, *names, failed=trouble)
        return re.findall(r"^Inst (\S+) (?:\[\S+\] )?\((\S+)", said, re.M)

    def fetch(self, wanted: list[tuple[str, str]]) -> list[Path]:
        """Download packages, unless they are here; note their versions and digests."""
        names = {f"{name}_{version.replace(':', '%3a')}_": f"{name}={version}" for name, version in wanted}
        absent = [asked for start, asked in names.items() if not list(self.debs.glob(f"{start}*.deb"))]
        if absent:
            say(f"downloading {len(absent)} packages")
            self.apt("apt-get", "download", *absent, cwd=self.debs)
        paths = [next(self.debs.glob(f"{start}*.deb")) for start in names]
        for path, (name, version) in zip(paths, wanted, strict=True):
            self.packages[name] = {"version": version, "sha256": digest(path)}
        return paths

    def unpack(self, deb: Path, *wanted: str) -> None:
        """Unpack a package, or those of its files that match a pattern, once."""
        stamp = deb.with_suffix(".unpacked")
        if stamp.exists():
            return
        patterns = ["--wildcards", *wanted] if wanted else []
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as data:
            command = ["tar", "-x", "--no-same-owner", "-C", self.root, *patterns]
            subprocess.run(
                command, stdin=data.stdout, check=True, stderr=subprocess.DEVNULL if wanted else None
            )
        stamp.touch()

    def versions(self, names: list[str]) -> dict[str, str]:
        """Return the newest version that there is of each package, if there is one."""
        found: dict[str, str] = {}
        for line in self.apt("apt-cache", "madison", *names).splitlines():
            name, version, _ = (part.strip() for part in line.split("|", 2))
            found.setdefault(name, version)
        return found

    def need(self, *groups: str) -> None:
        """Have the packages of NEEDED at hand: installed, or unpacked here; note the versions."""
        names = [name for group in groups for name in NEEDED[group]]
        for deb in self.fetch(self.missing(names)):
            self.unpack(deb)
        for link in self.root.glob("usr/lib/x86_64-linux-gnu/*.so"):
            if (
                link.is_symlink() and not link.exists()
            ):  # to a library that is installed, so not unpacked here
                library = self.find(f"usr/lib/x86_64-linux-gnu/{link.readlink().name}")
                link.unlink()
                link.symlink_to(library)
        installed = self.run(
            "dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n", apt=True
        )
        for name, version in re.findall(r"^ii  (\S+) (\S+)", installed, re.M):
            if name in names:
                self.packages.setdefault(name, {"version": version, "installed": "yes"})


# --- kernels ---


class Kernel(NamedTuple):
    """A kernel to boot: its image, KVM's modules if it has any, and where to build a module for it."""

    name: str
    image: Path
    modules: list[Path]
    build: Path
    types: list[str]
    """What pahole is told to read the modules' types."""
    built: dict[str, object]
    """Of a kernel built here: from what, and how it differs."""


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def prebuilt(scratch: Scratch, release: str, cpu: str) -> Kernel:
    """Take one of Debian's kernels and the headers that a module is built with."""
    pattern = re.compile(r"linux-image-(\d+\.\d+\.?\d*[^-]*(?:-\d+)?-amd64)$", re.M)
    found = pattern.findall(scratch.apt("apt-cache", "pkgnames", "linux-image-"))
    recent = [name for name in found if _version(name) >= OLDEST]
    there = scratch.versions([f"linux-image-{name}" for name in recent]) if recent else {}
    known = [name for name in recent if f"linux-image-{name}" in there]
    if release == "prebuilt" and known:
        release = max(known, key=_version)
    if release not in known:
        others = ", ".join(sorted(known, key=_version))
        others = (
            others
            or "none from 6.12 on; where a release has none, its backports may: add them to apt's sources"
        )
        lacking(f"no package linux-image-{release}; there are {others}")
    say(f"kernel {release}")
    headers = f"linux-headers-{release}"
    depends = scratch.apt("apt-cache", "depends", headers)
    parts = re.findall(r"Depends: (linux-(?:headers-\S+-common|kbuild-\S+))", depends)
    names = [f"linux-image-{release}", headers, *parts]
    newest = scratch.versions(names)
    image, *rest = scratch.fetch([(name, newest[name]) for name in names])
    modules = ("irqbypass", "ccp", "kvm", f"kvm-{cpu}")
    scratch.unpack(image, f"*/vmlinuz-{release}", "*/kvm*.ko*", "*/ccp.ko*", "*/irqbypass.ko*")
    for deb in rest:
        scratch.unpack(deb)
    build = scratch.root / "usr/src" / headers
    makefile = build / "Makefile"
    makefile.write_text(re.sub(r"(?<=\s)/usr/src", f"{scratch.root}/usr/src", makefile.read_text()))
    folder = f"lib/modules/{release}"
    found_modules = [path for name in modules for path in scratch.root.glob(f"**/{folder}/**/{name}.ko*")]
    types = ["-F", "btf", "--btf_base", str(build / "vmlinux")]
    return Kernel(release, scratch.root / "boot" / f"vmlinuz-{release}", found_modules, build, types, {})


def _place_check(source: Path, as_posted: bool) -> None:
    """Put the check of the synthetic bits where the patch as posted has it, or back.

    6.12 has it in the handler of the nested page fault; as posted it comes first in kvm_mmu_page_fault(),
    before attributes are looked up and KVM sets the private bit itself.  The lines are cut and pasted as they
    stand in the source at hand.
    """
    files = [source / "arch/x86/kvm" / name for name in ("svm/svm.c", "mmu/mmu.c")]
    texts = []
    for path in files:
        kept = path.with_suffix(".c.as-it-came")
        if not kept.exists():
            shutil.copy(path, kept)
        texts.append(kept.read_text())
    if as_posted:
        svm, mmu = texts
        check = re.search(
            r"\tif \(WARN_ON_ONCE\(error_code & PFERR_SYNTHETIC_MASK\)\)\n\t\terror_code &= .*\n", svm
        )
        place = re.search(
            r"\nint (?:\w+ )?kvm_mmu_page_fault\((?:.*\n)+?(?=\tif \(WARN_ON_ONCE\(!VALID_PAGE\()", mmu
        )
        if not check or not place:
            sys.exit(f"record: the check, or its place, is not found in {source}; 6.12's form is known")
        texts = [svm.replace(check[0], ""), f"{mmu[: place.end()]}{check[0]}\n{mmu[place.end() :]}"]
    for path, text in zip(files, texts, strict=True):
        if path.read_text() != text:
            path.write_text(text)


def self_built(scratch: Scratch, kind: str, only_configure: bool) -> Kernel | None:
    """Build a small kernel with software-protected VMs from Debian's newest kernel source.

    `kind` is `self` or `posted`: they share source and objects, so the second takes seconds.
    """
    found = re.findall(
        r"^linux-source-(\d+\.\d+)$", scratch.apt("apt-cache", "pkgnames", "linux-source-"), re.M
    )
    known = [name for name in found if _version(name) >= OLDEST]
    if not known:
        lacking("no package linux-source-6.12 or newer in the package sources of this machine")
    package = f"linux-source-{max(known, key=_version)}"
    version = scratch.versions([package])[package]
    scratch.need("module", "build")
    (deb,) = scratch.fetch([(package, version)])
    scratch.unpack(deb)
    source, build = scratch.folder / f"source-{version}", scratch.folder / f"kernel-{version}"
    if not source.exists():
        say(f"unpacking {package} {version}")
        fresh = source.with_name("source.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        archive_ = scratch.root / f"usr/src/{package}.tar.xz"
        scratch.run("tar", "-xf", archive_, "--strip-components=1", "-C", fresh)
        fresh.rename(source)
    _place_check(source, kind == "posted")
    include, libraries = scratch.root / "usr/include", scratch.root / "usr/lib/x86_64-linux-gnu"
    make = [
        "make", "-s", "-C", source, f"O={build}", f"HOSTCFLAGS=-O2 -I{include} -I{include}/x86_64-linux-gnu",
        f"HOSTLDFLAGS=-L{libraries}", "KBUILD_BUILD_TIMESTAMP=2026-01-01 00:00:00", "KBUILD_BUILD_USER=kvm_pf",
        "KBUILD_BUILD_HOST=recorder", "KBUILD_BUILD_VERSION=1", f"LOCALVERSION=-recorder-{kind}",
    ]  # fmt: skip
    asked = (HERE / "kernel.config").read_text()
    configured = build / "asked.config"
    if not configured.exists() or configured.read_text() != asked:
        build.mkdir(exist_ok=True)
        scratch.run(*make, "tinyconfig")
        with (build / ".config").open("a") as config:
            config.write(asked)
        scratch.run(*make, "olddefconfig")
        configured.write_text(asked)
    have = (build / ".config").read_text().splitlines()
    refused = [line for line in asked.splitlines() if line.startswith("CONFIG_") and line not in have]
    say(f"configured in {build}" + (f"; not taken: {', '.join(refused)}" if refused else ""))
    if only_configure:
        return None
    say("building the kernel: some ten minutes the first time")
    scratch.run(*make, f"-j{os.cpu_count() or 1}", "bzImage")
    shutil.copy(build / "vmlinux.symvers", build / "Module.symvers")
    scratch.run(*make, "modules_prepare")
    release = (build / "include/config/kernel.release").read_text().strip()
    built: dict[str, object] = {
        "source": f"{package} {version}",
        "changed": "the check of the synthetic bits, from npf_interception() to kvm_mmu_page_fault()"
        if kind == "posted"
        else "nothing",
        "options not taken": refused,
        "sha256 of .config": digest(build / ".config"),
    }
    return Kernel(release, build / "arch/x86/boot/bzImage", [], build, [], built)


# --- what runs in the machine ---


def _kvm(scratch: Scratch, kernel: Kernel, module: str) -> Path:
    """Return the file that holds KVM's machine code: a module, unpacked, or the kernel."""
    file = next(
        (path for path in kernel.modules if path.name.startswith(f"{module}.ko")), kernel.build / "vmlinux"
    )
    if file.suffix != ".xz":
        return file
    plain = scratch.folder / file.stem
    plain.write_bytes(lzma.decompress(file.read_bytes()))
    return plain


def _offset(scratch: Scratch, kernel: Kernel, struct: str, member: str, module: str) -> int | None:
    """Return where a member stands in a struct of KVM's, from the types that the kernel brings along."""
    said = scratch.run("pahole", "-E", *kernel.types, "-C", struct, _kvm(scratch, kernel, module))
    found = re.search(rf"\b{member};\s*/\*\s*(\d+)\s", said)
    return int(found[1]) if found else None


LOOK_UPS = {
    "kvm_mmu_page_fault": "look_pf",
    "kvm_mmu_do_page_fault": "look_pf",
    "kvm_faultin_pfn": "look_faultin",
    "kvm_mmu_faultin_pfn": "look_faultin",
    "fast_page_fault": "look_fast",
    "kvm_arch_vcpu_pre_fault_memory": "look_prefault",
    "hugepage_has_attrs": "look_huge",
    "paging64_page_fault": "look_p64",
    "ept_page_fault": "look_pept",
}
"""Functions that look up a page's attributes, and how the probes on their look-ups are named."""


def look_ups(scratch: Scratch, kernel: Kernel) -> str:
    """Find where KVM looks up attributes, as probes: the page asked about, and the answer as it is stored.

    It calls xa_load() for it, which itself cannot be probed (the kernel's lib/ is built without tracing): so the
    calls are looked for in the machine code, each with the instruction after it.  A function's second is named
    look_pf2.
    """
    code = scratch.run("objdump", "-dr", "--no-show-raw-insn", _kvm(scratch, kernel, "kvm"))
    probes: dict[str, str] = {}
    function, start, called, last = "", 0, "", 0
    for line in code.splitlines():
        if label := re.fullmatch(r"([0-9a-f]+) <(.+)>:", line):
            start, function, called = int(label[1], 16), label[2], ""
        elif name := LOOK_UPS.get(function.partition(".")[0]):
            if found := re.match(r" *([0-9a-f]+):\t(.*)", line):  # an instruction
                last, place = int(found[1], 16), f"{function}+{int(found[1], 16) - start:#x}"
                if called:
                    probes[f"{called}_val"] = f"{place} val=%ax:x64"
                called = ""
            if re.search(r"\bcall.*<xa_load>|R_X86_64_PL?\w+\txa_load\b", line):
                number = sum(probe.startswith(name) and not probe.endswith("_val") for probe in probes)
                called = name + (str(number + 1) if number else "")
                probes[called] = f"{function}+{last - start:#x} xa=%di:x64 gfn=%si:x64"
    return "".join(f"p:lab/{name} {probe}\n" for name, probe in probes.items())


def modules(scratch: Scratch, kernel: Kernel, cpu: str) -> dict[str, bytes]:
    """Build the modules that alter error codes and hold a CPU; return them, and the first one's parameters."""
    folder = scratch.folder / f"modules-{kernel.name}"
    folder.mkdir(exist_ok=True)
    names = ("inject", "hold")
    for name in names:
        shutil.copy(HERE / f"{name}.c", folder)
    (folder / "Makefile").write_text(f"obj-m := {' '.join(f'{name}.o' for name in names)}\n")
    scratch.run("make", "-s", "-C", kernel.build, f"M={folder}", "modules")
    parts = ("-R", ".note.gnu.build-id", "-R", ".BTF")  # they name the folder
    scratch.run("strip", "--strip-debug", *parts, *(folder / f"{name}.ko" for name in names))
    parameter, struct, member, module = {
        "amd": ("vmcb", "vcpu_svm", "vmcb", "kvm-amd"),
        "intel": ("qualification", "vcpu_vmx", "exit_qualification", "kvm-intel"),
    }[cpu]
    offset = _offset(scratch, kernel, struct, member, module)
    if offset is None:
        say(f"struct {struct} has no {member}: codes cannot be altered at the exit")
    built = {f"{name}.ko": (folder / f"{name}.ko").read_bytes() for name in names}
    return built | {"inject.parameters": f"{parameter}={offset or 0}".encode()}


def archive(files: dict[str, bytes]) -> bytes:
    """Pack files, the programs first made executable, into an initramfs: gzipped cpio ("newc"), without times."""
    folders = {str(parent) for name in files for parent in Path(name).parents if str(parent) != "."}
    entries = [(name, 0o40755, b"") for name in sorted(folders | {"dev"})]
    entries += [(name, 0o100755, data) for name, data in sorted(files.items())]
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        numbers = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08X" % value for value in numbers) + name.encode() + b"\0"
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return gzip.compress(bytes(out), 1, mtime=0)


def initramfs(scratch: Scratch, kernel: Kernel, cpu: str, scenarios: list[Path]) -> Path:
    """Make the file system that the machine starts with."""
    program = scratch.folder / "guest"
    include, libraries = scratch.root / "usr/include", scratch.root / "usr/lib/x86_64-linux-gnu"
    places = [f"-I{include}", f"-I{include}/x86_64-linux-gnu", f"-L{libraries}", f"-B{libraries}"]
    parts = [HERE / name for name in ("guest.c", "nested.c", "par.c")]
    scratch.run("gcc", "-O1", "-static", "-pthread", *places, "-o", program, *parts)
    scratch.run("strip", "-R", ".note.gnu.build-id", program)
    files = {"init": program.read_bytes()}
    files |= {name: (HERE / name).read_bytes() for name in ("probes", "events")}
    files["probes"] += look_ups(scratch, kernel).encode()
    for number, path in enumerate(scenarios, 1):
        files[f"scenarios/{number}-{path.stem}.scn"] = path.read_bytes()
    for path in kernel.modules:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        files[f"modules/{path.name.removesuffix('.xz')}"] = data
    files |= {f"modules/{name}": data for name, data in modules(scratch, kernel, cpu).items()}
    target = scratch.folder / "initramfs.gz"
    target.write_bytes(archive(files))
    return target


# --- the machine ---


def qemu(scratch: Scratch, kernel: Kernel, disk: Path, args: str, out: Path) -> tuple[list[str], str]:
    """Run an AMD machine; its clock counts instructions, one every eight nanoseconds.

    Its two CPUs take turns, and change over at a PAUSE.  The firmware's table lists one CPU of each socket.
    """
    firmware = [
        word for name in ("qemu", "seabios") for word in ("-L", str(scratch.find(f"usr/share/{name}")))
    ]
    command = [
        "qemu-system-x86_64", "-accel", "tcg,thread=single", "-cpu", "max,-rdrand,-rdseed", "-machine", "pc",
        "-m", "1024", "-smp", "2,sockets=2", "-icount", "shift=3,sleep=off", "-rtc", "base=2026-01-01,clock=vm",
        "-nodefaults", "-display", "none", "-nic", "none", "-no-reboot", *firmware, "-kernel", str(kernel.image),
        "-initrd", str(disk), "-append", f"{args} tsc_early_khz=1000000",
        "-serial", f"file:{out / 'console.log'}", "-serial", f"file:{out / 'serial'}",
    ]  # fmt: skip
    scratch.run(*command, limit=600)
    version = scratch.run("qemu-system-x86_64", "--version").splitlines()[0]
    return command, version


BOCHSRC = """\
display_library: term
cpu: model={model}, count=1, ips=100000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=1024, host=1024
romimage: file={bochs}/BIOS-bochs-latest, options=fastboot
vgaromimage: file={vgabios}
vga: extension=vbe, update_freq=1, realtime=0
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=console.log
com2: enabled=1, mode=file, dev=serial
clock: sync=none, time0={start}
plugin_ctrl: unmapped=1, biosdev=1, speaker=0, gameport=0, parallel=0
sound: waveoutdrv=dummy
speaker: enabled=0
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
log: bochs.log
"""


def bochs(scratch: Scratch, kernel: Kernel, disk: Path, args: str, out: Path) -> tuple[list[str], str]:
    """Run an Intel machine, from a CD image; it has no other way to be given a kernel."""
    args = f"{args} tsc_early_khz=100000 clearcpuid=rdrand,rdseed"
    where = scratch.folder / "bochs"
    shutil.rmtree(where, ignore_errors=True)
    cd = where / "cd"
    (cd / "isolinux").mkdir(parents=True)
    shutil.copy(scratch.find("usr/lib/ISOLINUX/isolinux.bin"), cd / "isolinux")
    shutil.copy(scratch.find("usr/lib/syslinux/modules/bios/ldlinux.c32"), cd / "isolinux")
    shutil.copy(kernel.image, cd / "vmlinuz")
    shutil.copy(disk, cd / "initramfs.gz")
    (cd / "isolinux/isolinux.cfg").write_text(
        f"DEFAULT x\nPROMPT 0\nTIMEOUT 0\nLABEL x\n KERNEL /vmlinuz\n INITRD /initramfs.gz\n APPEND {args}\n"
    )
    for path in [cd, *cd.rglob("*")]:
        os.utime(path, (START, START))
    scratch.extra |= {"SOURCE_DATE_EPOCH": str(START), "TERM": "linux"}
    scratch.run(
        "xorriso", "-as", "mkisofs", "-quiet", "-o", where / "boot.iso", "-b", "isolinux/isolinux.bin", "-c",
        "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", cd,
    )  # fmt: skip
    version = scratch.packages.get("bochs", {}).get("version", "0")
    model = "corei7_icelake_u" if _version(version) >= (3,) else "corei7_skylake_x"
    share, vgabios = scratch.find("usr/share/bochs"), scratch.find("usr/share/vgabios/vgabios.bin")
    (where / "bochsrc").write_text(BOCHSRC.format(model=model, bochs=share, vgabios=vgabios, start=START))
    (where / "go").write_text("c\n")  # tell the debugger, where there is one, to go on
    program = "bochs-bin" if scratch.find("usr/bin/bochs-bin").exists() else "bochs"
    inner = f"{program} -q -f bochsrc -rc go"
    command = ["script", "-qec", inner, "/dev/null"]  # the terminal that Bochs wants to draw on
    try:
        subprocess.run(
            command, cwd=where, env=scratch.env, timeout=900, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        sys.exit("record: Bochs did not end within 900 seconds")
    for name in ("console.log", "serial"):
        shutil.copy(where / name, out / name)
    return [*command, f"model={model}", f"append={args}"], f"Bochs {version}"


def cut(out: Path) -> list[str]:
    """Cut what left by the second serial port into its files; return their names."""
    text = (out / "serial").read_bytes().replace(b"\r\n", b"\n")
    parts = re.split(rb"^=== FILE (\S+)\n", text, flags=re.M)[1:]
    files = {name.decode(): data for name, data in zip(parts[::2], parts[1::2], strict=True)}
    if files.pop("end", None) is None:
        tail = (out / "console.log").read_text(errors="replace").strip().splitlines()[-8:]
        sys.exit("record: the machine stopped before its end; its console's last lines:\n" + "\n".join(tail))
    files["dmesg.txt"] = re.sub(rb"^<\d+>", b"", files["dmesg.txt"], flags=re.M)
    for name, data in files.items():
        (out / name).write_bytes(data)
    (out / "serial").unlink()
    return sorted(files)


def main() -> int:
    """Run the command line."""
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--kernel", default="prebuilt")
    parser.add_argument("--cpu", choices=tuple(SCENARIOS), default="amd")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "record")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scenario", type=Path, action="append", help="a file of your own, in place of ours")
    parser.add_argument("--boot-args", default="", help="such as kvm_amd.npt=0")
    parser.add_argument("--debian", default="", help="the release to take packages of, if not the machine's")
    parser.add_argument("--only-configure", action="store_true", help="stop before a kernel is built")
    given = parser.parse_args()
    began = time.monotonic()
    for path in given.scenario or ():
        if not path.is_file():
            sys.exit(f"record: {path}: no such scenario; a text file is wanted, one operation a line")
    if not shutil.which("apt-get"):
        lacking("apt-get is not there; Debian, or a container of it, is wanted")
    scratch = Scratch(given.work.resolve())
    scratch.update(given.debian)
    scratch.need("module", given.cpu)
    if given.kernel in ("self", "posted"):
        kernel = self_built(scratch, given.kernel, given.only_configure)
        if kernel is None:
            return 0
    else:
        kernel = prebuilt(scratch, given.kernel, given.cpu)
    out = given.out or scratch.folder / f"{kernel.name}-{given.cpu}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    out = out.resolve()
    scenarios = given.scenario or [HERE / "scenarios" / f"{name}.scn" for name in SCENARIOS[given.cpu]]
    disk = initramfs(scratch, kernel, given.cpu, [path.resolve() for path in scenarios])
    say("running the machine")
    emulator = qemu if given.cpu == "amd" else bochs
    command, version = emulator(scratch, kernel, disk, f"{BOOT_ARGS} {given.boot_args}".strip(), out)
    files = cut(out)
    made = {
        "kernel": kernel.name,
        **({"built": kernel.built} if kernel.built else {}),
        "emulator": version,
        "command": [word.replace(f"{out}/", "").replace(f"{scratch.folder}/", "") for word in command],
        "compiler": scratch.run("gcc", "--version").splitlines()[0],
        "packages": dict(sorted(scratch.packages.items())),
        "sha256": {"kernel": digest(kernel.image), "initramfs": digest(disk)}
        | {path.name: digest(path) for path in sorted(HERE.glob("*")) if path.is_file()}
        | {path.name: digest(path) for path in scenarios},
    }
    (out / "provenance.json").write_text(json.dumps(made, indent=1) + "\n")
    say(f"{out}: {', '.join(files)}; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
