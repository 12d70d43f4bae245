// A kernel that says it is OpenBSD's and prints how it was entered and all that boot(8)'s protocol gave it, one
// `name=value` a line, on the first serial port; then it writes 21 to the debug exit port 0xf4, or halts with interrupts
// off. It is built as ELF64, whose entry is 32-bit code that goes on to long mode by the loader's own descriptors and
// page tables, and as ELF32.
#include <elf.h>

#include "../kernel.h"

#ifdef __x86_64__
typedef Elf64_Ehdr header;
typedef Elf64_Shdr section;
typedef Elf64_Sym symbol;
#else
typedef Elf32_Ehdr header;
typedef Elf32_Shdr section;
typedef Elf32_Sym symbol;
#endif

extern uint8_t bss_end[];

// What must be cleared, loaded and found among the symbols, and filled with random bytes.
static volatile uint32_t zeros[3000], loaded = 0x600DDA7A;
uint32_t known_symbol = 1;
__attribute__((section(".openbsd.randomdata"))) static volatile uint8_t randomness[64] = {0};

// What start saves before it changes anything.
uint32_t entry_esp, entry_eflags, entry_cr0, entry_cr3, entry_cr4, entry_efer, entry_cs, entry_ds, entry_es, entry_fs,
    entry_gs, entry_ss;

struct __attribute__((packed)) map_entry {
    uint64_t base, length;
    uint32_t type;
};

static void print_arguments(const uint32_t *at)
{
    for (; *at != 0xFFFFFFFF; at = (const uint32_t *)((const uint8_t *)at + at[2])) {
        const uint8_t *data = (const uint8_t *)(at + 3);
        field("argument", at[0], 8), field("size", at[1], 8), field("next", at[2], 8);
        if (at[2] < 12) break;
        switch (at[0]) {
        case 0:
            for (const struct map_entry *entry = (const void *)data; entry->type; entry++)
                range("memmap", entry->base, entry->length, entry->type);
            break;
        case 5:
            for (uint32_t i = 0; i < (at[1] - 12) / 4; i++) field("consdev", at[3 + i], 8);
            break;
        case 7:
            print("bootmac=");
            for (int i = 0; i < 6; i++) hex(data[i], 2);
            put('\n');
            break;
        }
    }
    print("arguments end\n");
}

// As the kernel's debugger reads them: an ELF file behind the kernel, its offsets counted from its own header.
static void print_symbols(uint32_t end)
{
    const uintptr_t alignment = sizeof(uintptr_t);
    const uint8_t *start = (const uint8_t *)(((uintptr_t)bss_end + alignment - 1) & ~(alignment - 1));
    const header *elf = (const header *)start;
    const section *sections = (const section *)(start + elf->e_shoff);
    field("elf", *(const uint32_t *)elf->e_ident, 8), field("class", elf->e_ident[EI_CLASS], 2);
    field("phoff", (uint32_t)elf->e_phoff, 8), field("phnum", elf->e_phnum, 4), field("phentsize", elf->e_phentsize, 4);
    field("shoff", (uint32_t)elf->e_shoff, 8);
    uint32_t last = 0, found = 0;
    for (int i = 0; i < elf->e_shnum; i++) {
        const section *at = &sections[i];
        if (at->sh_type != SHT_SYMTAB && at->sh_type != SHT_STRTAB) continue;
        field("section", at->sh_type, 2), field("allocated", at->sh_flags & SHF_ALLOC ? 1 : 0, 1);
        last = (uint32_t)(at->sh_offset + at->sh_size);
        if (at->sh_type != SHT_SYMTAB) continue;
        const char *names = (const char *)(start + sections[at->sh_link].sh_offset);
        const symbol *symbols = (const symbol *)(start + at->sh_offset);
        for (uint32_t j = 0; j < at->sh_size / sizeof(symbol); j++)
            if (find(names + symbols[j].st_name, "known_symbol")) found = (uint32_t)symbols[j].st_value;
    }
    field("symbol", found == (uint32_t)(uintptr_t)&known_symbol, 1);
    const uint32_t reach = (uint32_t)(uintptr_t)start + last;
    field("end", end == ((reach + (uint32_t)alignment - 1) & ~((uint32_t)alignment - 1)), 1);
}

void run(void)
{
    field("eflags", entry_eflags, 8), field("cr0", entry_cr0 & 0x80000001, 8), field("cr3", entry_cr3, 8);
    field("cr4", entry_cr4 & 0x30, 8), field("efer", entry_efer & 0x500, 8), field("esp", entry_esp, 8);
    const uint32_t selectors[] = {entry_cs, entry_ds, entry_es, entry_fs, entry_gs, entry_ss};
    for (int i = 0; i < 6; i++) field("selector", selectors[i], 4);
    struct __attribute__((packed)) {
        uint16_t limit;
        uintptr_t base;
    } table;
    __asm__("sgdt %0" : "=m"(table));
    field("gdt", (uint32_t)table.base, 8), field("gdt_limit", table.limit, 4);
    for (int i = 0; i < 4; i++) print("descriptor="), wide(((const uint64_t *)table.base)[i] & ~(1ull << 40)), put('\n');

    uint32_t any = 0;
    for (int i = 0; i < 3000; i++) any |= zeros[i];
    field("bss", any, 8), field("data", loaded, 8);
    print("random=");
    for (int i = 0; i < 64; i++) hex(randomness[i], 2);
    put('\n');

    // From the return address' slot up: the function arguments of OpenBSD's start.
    const uint32_t *stack = (const uint32_t *)(uintptr_t)entry_esp;
    static const char *const names[] = {"howto", "bootdev", "version", "end_at", "extmem", "basemem", "size", "arguments"};
    for (int i = 0; i < 8; i++) field(names[i], stack[1 + i], 8);
    print_arguments((const uint32_t *)(uintptr_t)stack[8]);
    print_symbols(stack[4]);
    print("end\n");
    out8(0xF4, 21);
}

__asm__(".code32\n.globl start\nstart:\n"
        "mov %esp, entry_esp\n mov $stack_end, %esp\n pushf\n pop %eax\n mov %eax, entry_eflags\n"
        "mov %cr0, %eax\n mov %eax, entry_cr0\n mov %cr3, %eax\n mov %eax, entry_cr3\n"
        "mov %cr4, %eax\n mov %eax, entry_cr4\n"
        "mov $0xC0000080, %ecx\n rdmsr\n mov %eax, entry_efer\n"
        "mov %cs, %eax\n mov %eax, entry_cs\n mov %ds, %eax\n mov %eax, entry_ds\n"
        "mov %es, %eax\n mov %eax, entry_es\n mov %fs, %eax\n mov %eax, entry_fs\n"
        "mov %gs, %eax\n mov %eax, entry_gs\n mov %ss, %eax\n mov %eax, entry_ss\n"
#ifdef __x86_64__
        "ljmp $0x18, $long_mode\n.code64\nlong_mode:\n mov $stack_end, %rsp\n"
#endif
        "call run\n1: cli\n hlt\n jmp 1b\n"
        ".bss\n .align 16\n .skip 4096\nstack_end:\n.text\n");
