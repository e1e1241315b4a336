/* The kernel of tests/c/emulated_cpu.py, which defines the names in capitals: it serves the system
 * calls of one program with one thread and no files, and a fork runs to its end before its parent
 * goes on. What leaves is a byte that names the kind ('1', '2': output, 'x': the exit status), four
 * of a length, and so many bytes. */
typedef unsigned long u64;
#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(value) #value
enum { NONE = TAKEN | PRESENT | WRITABLE, ALL = NONE | USER }; /* rights to a page */
static u64 *const leaves = (u64 *)LEAVES, *const leaves_of_parent = (u64 *)(HALF + LEAVES);
static struct {
    u64 entry, stack, heap;
} *const program = (void *)PROGRAM;
static struct registers {
    u64 rbx, rbp, r12, r13, r14, r15, r8, r9, r10, rdx, rsi, rdi, rax, rcx, r11, rsp;
} parent;
static u64 end_of_all = HEAP_END, heap_now, heap_of_parent, child, status_of_child;
static unsigned mxcsr_of_parent;

__asm__(
    ".section .start, \"ax\"\n.code16\n.global start\nstart: cli\n lgdtl gdt_pointer\n"
    " mov $" TEXT(
        TOP_TABLE) ", %eax\n mov %eax, %cr3\n mov $0x40620, %eax\n mov %eax, %cr4\n" /* XSAVE, SSE,
                                                                                        PAE */
                   " mov $0xc0000080, %ecx\n mov $0x101, %eax\n xor %edx, %edx\n wrmsr\n" /* long
                                                                                             mode,
                                                                                             SYSCALL
                                                                                           */
                   " mov $0x80000033, %eax\n mov %eax, %cr0\n ljmpl $8, $start64\n.code64\n"
                   "start64: mov $16, %eax\n mov %eax, %ds\n mov %eax, %es\n mov %eax, %ss\n mov "
                   "$stack_end, %esp\n"
                   " fninit\n call setup\n mov %rax, %rcx\n mov %rdx, %rsp\n mov $2, %r11\n xor "
                   "%edx, %edx\n sysretq\n"
                   "gdt_pointer: .word 63\n .long gdt\n.balign 8\n.global gdt\n"
                   "gdt: .quad 0, 0xaf9b000000ffff, 0xcf93000000ffff, 0, 0xcff3000000ffff, "
                   "0xaffb000000ffff, 0, 0\n"
                   ".text\n.global on_syscall, resume\non_syscall: mov %rsp, user_stack\n mov "
                   "$stack_end, %esp\n"
                   " push user_stack\n push %r11\n push %rcx\n push %rax\n push %rdi\n push %rsi\n "
                   "push %rdx\n push %r10\n"
                   " push %r9\n push %r8\n push %r15\n push %r14\n push %r13\n push %r12\n push "
                   "%rbp\n push %rbx\n call serve\n"
                   "resume: mov $registers, %esp\n pop %rbx\n pop %rbp\n pop %r12\n pop %r13\n pop "
                   "%r14\n pop %r15\n"
                   " pop %r8\n pop %r9\n pop %r10\n pop %rdx\n pop %rsi\n pop %rdi\n pop %rax\n "
                   "pop %rcx\n pop %r11\n"
                   " pop %rsp\n sysretq\n"
                   ".balign 16\n.global vectors\nvectors:\n.set n, 0\n.rept 32\n.balign 16\n"
                   ".if (0x227d00 >> n) & 1\n.else\n push $0\n.endif\n push $n\n jmp "
                   "on_fault\n.set n, n + 1\n.endr\n"
                   "on_fault: pop %rdi\n pop %rsi\n pop %rdx\n and $-16, %rsp\n call fault\n"
                   ".bss\n.balign 16\n.skip 65536\n.global registers\nregisters: .skip "
                   "128\nstack_end: user_stack: .quad 0\n"
                   ".text\n");
extern u64 gdt[];
extern char vectors[], on_syscall[];
extern struct registers registers;

static void out(unsigned char byte)
{
    __asm__ volatile("outb %0, $0xe9" : : "a"(byte));
}
static void send(char kind, const char *data, unsigned bytes)
{
    out(kind);
    for (int i = 0; i < 4; i++)
        out(bytes >> 8 * i);
    __asm__ volatile("rep outsb" : "+S"(data), "+c"(bytes) : "d"(0xe9) : "memory");
}
static void say(const char *text, u64 number)
{
    char digits[16];
    unsigned length = 0;
    while (text[length])
        length++;
    for (int i = 15; i >= 0; i--, number >>= 4)
        digits[i] = "0123456789abcdef"[number & 15];
    send('2', text, length), send('2', digits, 16);
}

static void copy(u64 to, u64 from, u64 bytes)
{
    bytes /= 8;
    __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
}
static void clear(u64 to, u64 bytes)
{
    bytes /= 8;
    __asm__ volatile("rep stosq" : "+D"(to), "+c"(bytes) : "a"(0) : "memory");
}
static void forget(u64 at)
{
    __asm__ volatile("invlpg (%0)" : : "r"(at) : "memory");
}
static void forget_all(void)
{
    __asm__ volatile("mov %0, %%cr3" : : "r"((u64)TOP_TABLE) : "memory");
}
/* A child runs to its end before its parent goes on. Pages that the parent wrote to are kept HALF
 * above. */
static long fork(void)
{
    if (child)
        return -11;
    for (u64 page = STACK / PAGE; page < end_of_all / PAGE; page++) {
        leaves_of_parent[page] = leaves[page];
        if ((leaves[page] & (DIRTY | PRESENT)) == (DIRTY | PRESENT))
            copy(page * PAGE + HALF, page * PAGE, PAGE);
        leaves[page] &= ~DIRTY;
    }
    forget_all();
    parent = registers, heap_of_parent = heap_now, child = 1;
    __asm__ volatile("stmxcsr %0" : "=m"(mxcsr_of_parent));
    return 0;
}
static void leave(unsigned char status)
{
    while (!child) {
        send('x', (char *)&status, 1);
        __asm__ volatile("cli; hlt");
    }
    for (u64 page = STACK / PAGE; page < end_of_all / PAGE; page++) {
        u64 written = leaves[page] & DIRTY, at = page * PAGE;
        leaves[page] = leaves_of_parent[page];
        if (!written || !(leaves[page] & PRESENT))
            continue;
        forget(at);
        if (leaves[page] & DIRTY)
            copy(at, at + HALF, PAGE);
        else
            clear(at, PAGE);
    }
    forget_all();
    registers = parent, heap_now = heap_of_parent, child = 0, status_of_child = status;
    registers.rax = 2;
    __asm__ volatile("ldmxcsr %0\n jmp resume" : : "m"(mxcsr_of_parent));
}
void fault(u64 vector, u64 error, u64 at)
{
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    say("emulated CPU: exception ", vector), say(", error ", error), say(" at ", at);
    say(", page fault's address ", address), send('2', "\n", 1);
    leave(vector == 6 ? 132 : vector == 0 || vector == 19 ? 136 : 139);
}

static void map(u64 first, u64 end, u64 bits)
{
    for (; first < end; first += PAGE) {
        leaves[first / PAGE] = (leaves[first / PAGE] & DIRTY) | (bits ? first | bits : 0);
        forget(first);
    }
}
static u64 pages(u64 bytes)
{
    return (bytes + PAGE - 1) / PAGE * PAGE;
}
static u64 bits_of(u64 protection)
{
    return protection & 2 ? ALL : protection ? ALL & ~WRITABLE : NONE;
}
static long map_new(u64 bytes, u64 protection)
{
    u64 first = HEAP_END;
    for (u64 at = first; at - first < bytes; at += PAGE) {
        if (at >= HALF)
            return -12;
        if (leaves[at / PAGE] & TAKEN)
            first = at + PAGE;
    }
    end_of_all = first + bytes > end_of_all ? first + bytes : end_of_all;
    map(first, first + bytes, ALL);
    clear(first, bytes);
    map(first, first + bytes, bits_of(protection));
    return first;
}
static long set_heap(u64 end)
{
    if (end >= program->heap && end <= HEAP_END) {
        map(pages(heap_now), pages(end), ALL);
        heap_now = end;
    }
    return heap_now;
}

static void wrmsr(unsigned number, u64 value)
{
    __asm__ volatile("wrmsr" : : "c"(number), "a"((unsigned)value), "d"((unsigned)(value >> 32)));
}
struct pair {
    u64 entry, stack;
} setup(void)
{
    static volatile struct {
        unsigned low, stack[2], rest[23];
    } task;
    static volatile struct {
        unsigned short low, code, kind, high;
        u64 top;
    } idt[32];
    static volatile struct __attribute__((packed)) {
        unsigned short limit;
        u64 base;
    } pointer;
    for (u64 at = 0; at < 2ul * HALF;
         at += BLOCK) { /* Bochs lays blocks of RAM as they are first used */
        u64 leaf = leaves[at / PAGE];
        map(at, at + PAGE, PRESENT), (void)*(volatile char *)at, leaves[at / PAGE] = leaf;
    }
    for (int i = 0; i < 32; i++) {
        u64 to = (u64)vectors + 16 * i;
        idt[i].low = to, idt[i].code = 8, idt[i].kind = 0x8e00, idt[i].high = to >> 16;
    }
    pointer.limit = sizeof idt - 1, pointer.base = (u64)idt;
    task.stack[0] = (u64)&registers;
    gdt[6] = 103 | (u64)&task << 16 | 0x89ul << 40;
    __asm__ volatile("lidt %0\n ltr %w1" : : "m"(pointer), "r"(48));
    __asm__ volatile("xsetbv" : : "c"(0), "a"(0x600e7), "d"(0)); /* x87, SSE, AVX, AVX-512, AMX */
    wrmsr(0xc0000081, 0x18ul << 48 | 8ul << 32), wrmsr(0xc0000082, (u64)on_syscall);
    wrmsr(0xc0000084, 0x700);
    heap_now = program->heap;
    out(0);
    return (struct pair){program->entry, program->stack};
}

static long answer(u64 number, u64 a, u64 b, u64 c, u64 d)
{
    unsigned low, high;
    long sum = 0;
    switch (number) {
    case 1: /* write */
        return a == 1 || a == 2 ? send('0' + a, (char *)b, c), c : -9;
    case 20: /* writev */
        for (u64 *part = (u64 *)b; c--; part += 2)
            sum += answer(1, a, part[0], part[1], 0);
        return sum;
    case 5:
    case 262: /* fstat, newfstatat: a character device */
        b = number == 262 ? c : b;
        clear(b, 144);
        ((unsigned *)b)[6] = 020620;
        return 0;
    case 9: /* mmap: anonymous, anywhere */
        return (d & 0x30) == 0x20 ? map_new(pages(b), c) : -22;
    case 10: /* mprotect */
        return map(a, a + pages(b), bits_of(c)), 0;
    case 11: /* munmap */
        return map(a, a + pages(b), 0), 0;
    case 12: /* brk */
        return set_heap(a);
    case 16: /* ioctl */
        return -25;
    case 13:
    case 14:
    case 24:
    case 28:
    case 37:
    case 202:
    case 273:
    case 302:
        return 0; /* no signals, one thread, no limits */
    case 39:
    case 186:
    case 218: /* getpid, gettid, set_tid_address */
        return 1 + child;
    case 56: /* clone */
        return a & 0x100 ? -11 : fork();
    case 60:
    case 231: /* exit, exit_group */
        leave(a);
    case 61: /* wait4 */
        *(int *)b = status_of_child < 128 ? status_of_child << 8 : status_of_child - 128;
        return 2;
    case 62:
    case 200:
    case 234: /* kill, tkill, tgkill */
        leave(128 + (number == 234 ? c : b));
    case 158: /* arch_prctl: the base of FS; permission for AMX */
        if (a == 0x1002)
            wrmsr(0xc0000100, b);
        return a == 0x1002 || (a == 0x1023 && b == 18) ? 0 : -22;
    case 204: /* sched_getaffinity */
        *(u64 *)c = 1;
        return 8;
    case 228: /* clock_gettime */
        __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
        ((u64 *)b)[0] = ((u64)high << 32 | low) / 1000000000;
        ((u64 *)b)[1] = ((u64)high << 32 | low) % 1000000000;
        return 0;
    case 318: /* getrandom */
        for (u64 i = 0; i < b; i++)
            ((char *)a)[i] = i * 41 + 7;
        return b;
    default:
        return -38;
    }
}
void serve(void)
{
    struct registers *r = &registers;
    r->rax = answer(r->rax, r->rdi, r->rsi, r->rdx, r->r10);
}
