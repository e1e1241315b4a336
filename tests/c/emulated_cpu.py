"""Runs a program on an emulated Sapphire Rapids CPU: AVX-512 and AMX code on machines that have neither.

    python tests/c/emulated_cpu.py PROGRAM [ARGUMENT ...]

PROGRAM is a statically linked x86-64 Linux program at fixed addresses (cc -static -no-pie). Its standard
output and error are ours, and so is its exit status; of the environment it sees what starts with FASTLSTM_.

The CPU is that of Bochs 3.0 or later, with AMX, which build_bochs.sh makes: the program `bochs`, or what $BOCHS
names.

There is no operating system. RAM starts with the program at its addresses, its first stack, page tables and
a kernel, emulated_kernel.c, which `cc` compiles here. Output leaves through Bochs' debugging port. Where Bochs
or the compiler is missing, this ends with status 77. Times say nothing: an instruction is an instruction. Bochs 3.0
does not ask for the permission to use AMX that Linux gives, and flushes some sums near 2^-126 that a CPU keeps.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from typing import IO

# Addresses are physical and virtual. From 0: the kernel, the stack, the program, brk's memory, mmap's memory,
# and from HALF on what a forked program's parent needs later.
PAGE, HALF = 4096, 256 << 20
BLOCK = 8 << 20  # what Bochs takes RAM in
TOP_TABLE, PROGRAM, BOOT, LEAVES = 0x1000, 0x4000, 0x8000, 0x100000
STACK, STACK_END, HEAP_END = 2 << 20, 4 << 20, 64 << 20
PRESENT, WRITABLE, USER, DIRTY, TAKEN = 1, 2, 4, 1 << 6, 1 << 9  # bits of an entry of a page table
SHARED = "PAGE HALF BLOCK TOP_TABLE PROGRAM LEAVES STACK HEAP_END PRESENT WRITABLE USER DIRTY TAKEN"  # with the kernel
COMPILE = (
    "-O1 -w -ffreestanding -nostdlib -static -no-pie -fno-pic -fno-stack-protector -fcf-protection=none"
    f" -mno-red-zone -mgeneral-regs-only -Wl,--section-start=.start={BOOT:#x},-Ttext={BOOT + PAGE:#x}"
    " -Wl,-e,start,-z,noseparate-code,--build-id=none"
)
KERNEL = Path(__file__).with_name("emulated_kernel.c")


def missing(what: str) -> None:
    print(f"emulated_cpu.py: {what}", file=sys.stderr)
    raise SystemExit(77)


class Memory:
    """RAM as it is when the CPU starts, and the table of its pages."""

    def __init__(self) -> None:
        self.image = bytearray(STACK_END)
        self.leaves = array("Q", bytes(2 * HALF // PAGE * 8))
        self.allow(0, STACK, PRESENT | WRITABLE)
        self.allow(STACK, STACK_END, PRESENT | WRITABLE | USER | TAKEN)
        self.allow(HALF, 2 * HALF, PRESENT | WRITABLE)

    def allow(self, first: int, end: int, bits: int) -> None:
        for page in range(first // PAGE, -(-end // PAGE)):
            self.leaves[page] |= page * PAGE | bits

    def put(self, address: int, data: bytes) -> None:
        self.image.extend(bytes(max(0, address + len(data) - len(self.image))))
        self.image[address : address + len(data)] = data

    def load(self, path: Path, bits: int) -> tuple[int, int, list[int]]:
        """Puts a program's segments -> where it starts, where it ends, what the auxiliary vector tells of it."""
        elf = path.read_bytes()
        kind, machine = struct.unpack_from("<HH", elf, 16)
        if elf[:5] != b"\x7fELF\x02" or (kind, machine) != (2, 62):
            raise SystemExit(f"{path}: not an x86-64 program at fixed addresses: link with -static -no-pie")
        entry, headers = struct.unpack_from("<QQ", elf, 24)
        size, count = struct.unpack_from("<HH", elf, 54)
        end = place = 0
        for header in range(headers, headers + size * count, size):
            kind, rights, offset, start, _, in_file, in_memory = struct.unpack_from("<IIQQQQQ", elf, header)
            if kind == 1:
                self.put(start, elf[offset : offset + in_file] + bytes(in_memory - in_file))
                self.allow(start, start + in_memory, bits | (WRITABLE | DIRTY if rights & 2 else 0))
                end = max(end, start + in_memory)
                place = start + headers - offset if offset <= headers < offset + in_file else place
        return entry, end, [3, place, 4, size, 5, count, 9, entry]

    def put_stack(self, arguments: list[str], environment: list[str], auxiliary: list[int]) -> int:
        """argc, argv, envp, the auxiliary vector, and the strings -> the stack's top."""
        strings, places = b"", []
        for text in arguments + environment:
            places.append(len(strings))
            strings += os.fsencode(text) + b"\0"
        chaos = STACK_END - 16
        base = chaos - len(strings)
        argv, envp = (
            [base + at for at in part] for part in (places[: len(arguments)], places[len(arguments) :])
        )
        rest = [6, PAGE, 16, 0xBFEBFBFF, 23, 0, 25, chaos, 31, argv[0], 0, 0]
        words = [len(argv), *argv, 0, *envp, 0, *auxiliary, *rest]
        top = (base - 8 * len(words)) & ~15
        self.put(top, struct.pack(f"<{len(words)}Q", *words))
        self.put(base, strings + b"sixteen of chaos")
        self.allow(top, STACK_END, DIRTY)
        return top

    def finish(self) -> bytearray:
        """Puts the page tables: an entry for everything, one for the first gigabyte, one for each 2 MiB."""
        tables = [LEAVES + at * PAGE for at in range(2 * HALF // (512 * PAGE))]
        for level, entries in enumerate(([TOP_TABLE + PAGE], [TOP_TABLE + 2 * PAGE], tables)):
            rights = [entry | PRESENT | WRITABLE | USER for entry in entries]
            self.put(TOP_TABLE + level * PAGE, struct.pack(f"<{len(rights)}Q", *rights))
        self.put(LEAVES, self.leaves.tobytes())
        return self.image


def copy_output(bochs: IO[bytes]) -> int | None:
    """Copies what the kernel sends to our standard output and error -> the exit status, if it came so far."""
    while (byte := bochs.read(1)) != b"\0":  # Bochs' own words
        if not byte:
            return None
    while len(head := bochs.read(5)) == 5:
        data = bochs.read(int.from_bytes(head[1:], "little"))
        if head[:1] == b"x":
            return data[0]
        stream = sys.stdout if head[:1] == b"1" else sys.stderr
        stream.buffer.write(data)
        stream.flush()
    return None


def run(bochs: str, memory: Memory, folder: Path) -> int:
    ram, rom, settings, log = (folder / name for name in ("ram", "rom", "settings", "log"))
    ram.write_bytes(memory.finish())
    jump = b"\xea" + struct.pack("<HH", BOOT, 0)  # where a CPU starts, 16 bytes before the end
    rom.write_bytes(bytes(0xFFF0) + jump.ljust(16, b"\0"))
    settings.write_text(f"""
cpu: model=sapphire_rapids, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest={2 * HALF >> 20}, host={2 * HALF >> 20}, block_size={BLOCK >> 10}
romimage: file={rom}, address=0xffff0000
vgaromimage: file={rom}
optramimage1: file={ram}, address=0
port_e9_hack: enabled=1
display_library: nogui
log: {log}
""")
    command = [bochs, "-qf", str(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as running:
        try:
            assert running.stdout
            status = copy_output(running.stdout)
        finally:
            running.kill()
    if status is None:
        print(*log.read_text().splitlines()[-20:] if log.exists() else (), sep="\n", file=sys.stderr)
        raise SystemExit("emulated_cpu.py: Bochs ended before the program")
    return status


def main() -> int:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    bochs, compiler = shutil.which(os.environ.get("BOCHS", "bochs")), shutil.which(os.environ.get("CC", "cc"))
    if not bochs:
        missing("no program `bochs`, the emulator ($BOCHS may name it); build_bochs.sh makes it")
    if not compiler:
        missing("no C compiler `cc` ($CC may name it)")
    assert bochs and compiler
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    memory = Memory()
    entry, end, auxiliary = memory.load(Path(sys.argv[1]), PRESENT | USER | TAKEN)
    environment = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("FASTLSTM_")]
    top = memory.put_stack(sys.argv[1:], environment, auxiliary)
    memory.put(PROGRAM, struct.pack("<QQQ", entry, top, -(-end // PAGE) * PAGE))
    with tempfile.TemporaryDirectory() as folder:
        kernel = Path(folder, "kernel")
        shared = [f"-D{name}={globals()[name]:#x}" for name in SHARED.split()]
        subprocess.run([compiler, *COMPILE.split(), *shared, "-o", kernel, KERNEL], check=True)
        memory.load(kernel, PRESENT)
        return run(bochs, memory, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
