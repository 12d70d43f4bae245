// A multiboot 1 kernel of a few KB that knows vmmci(4). Its command line says what it does:
//   halt     switches all sources of interrupts off, says so and halts for ever: the guest that costs nothing
//   (else)   finds vmmci, negotiates, prints each step on the first serial port, and does what it is asked: reboots or
//            powers off, or reads the host's time. Words that change that:
//   slow     acknowledges a request and then does nothing about it
//   deaf     does not acknowledge
//   bytes    acknowledges one byte at a time, as Linux's drivers write
//   bare     does not offer to acknowledge
//   moved    moves the device's base address first
//   off      powers off by itself after it has said so: by vmmci alone, without ACPI
//   tick     prints a dot for each tick of a 20 Hz timer
#include "../kernel.h"

__attribute__((section(".multiboot"), used)) static const uint32_t header[] = {0x1BADB002, 0x3, -(0x1BADB002 + 0x3)};

struct information {
    uint32_t flags, mem_lower, mem_upper, boot_device, cmdline;
};

// PCI, by configuration mechanism 1.
static void select(uint32_t slot, uint32_t at) { out32(0xCF8, 0x80000000 | slot << 11 | (at & 0xFC)); }
static uint32_t pci_read(uint32_t slot, uint32_t at) { return select(slot, at), in32(0xCFC); }
static void pci_write(uint32_t slot, uint32_t at, uint32_t value) { select(slot, at), out32(0xCFC, value); }

// Legacy virtio, and vmmci's configuration behind it.
enum { HOST_FEATURES = 0, GUEST_FEATURES = 4, STATUS = 0x12, ISR = 0x13, COMMAND = 0x14, SECONDS = 0x18, MICROSECONDS = 0x20 };
enum { SHUTDOWN = 1, REBOOT = 2, SYNCRTC = 3 };

static uint16_t base;
static uint8_t line;
static const char *words;
static volatile uint32_t ticks, rings;

void timer_interrupt(void)
{
    ticks++;
    out8(0x20, 0x20);
}
void device_interrupt(void)
{
    // The device may share its line: reading the ISR tells, and lets go of the line.
    if (in8(base + ISR) & 2) rings++;
    if (line >= 8) out8(0xA0, 0x20);
    out8(0x20, 0x20);
}
// The rest: spurious ones of the master.
__asm__(".globl timer_entry, device_entry, other_entry\n"
        "timer_entry: pusha\n cld\n call timer_interrupt\n popa\n iret\n"
        "device_entry: pusha\n cld\n call device_interrupt\n popa\n iret\n"
        "other_entry: iret\n");
extern char timer_entry[], device_entry[], other_entry[];

static struct {
    uint16_t low, selector, type, high;
} gates[64];

static void gate(int vector, const char *entry)
{
    uint16_t code;
    __asm__("mov %%cs, %0" : "=r"(code));
    gates[vector].low = (uint16_t)(uint32_t)entry, gates[vector].high = (uint16_t)((uint32_t)entry >> 16);
    gates[vector].selector = code, gates[vector].type = 0x8E00;
}

static void interrupts(uint16_t wanted)
{
    for (int i = 32; i < 64; i++) gate(i, other_entry);
    gate(32, timer_entry);
    if (line) gate(32 + line, device_entry);
    struct __attribute__((packed)) {
        uint16_t limit;
        uint32_t base;
    } table = {sizeof gates - 1, (uint32_t)gates};
    __asm__ volatile("lidt %0" : : "m"(table));
    static const uint8_t icw[2][4] = {{0x11, 0x20, 4, 1}, {0x11, 0x28, 2, 1}};
    for (int chip = 0; chip < 2; chip++) {
        uint16_t port = chip ? 0xA0 : 0x20;
        out8(port, icw[chip][0]);
        for (int i = 1; i < 4; i++) out8(port + 1, icw[chip][i]);
        out8(port + 1, (uint8_t)(~wanted >> 8 * chip));
    }
}

static void wait(void) { __asm__ volatile("sti\n hlt\n cli"); }

static void acknowledge(uint32_t command)
{
    if (find(words, "bytes"))
        for (int i = 0; i < 4; i++) out8(base + COMMAND + i, (uint8_t)(command >> 8 * i));
    else
        out32(base + COMMAND, command);
}

static void obey(uint32_t command)
{
    field("command", command, 1);
    if (find(words, "deaf") || command == 0) return;
    if (!find(words, "bare")) acknowledge(command);
    if (command == SYNCRTC) {
        field("seconds", in32(base + SECONDS), 8);
        print("clock set\n");
    }
    if (find(words, "slow")) return;
    if (command == REBOOT) {
        print("rebooting\n");
        out8(0xCF9, 6);
    }
    if (command == SHUTDOWN) {
        print("powering off\n");
        out16(0xB008, 5 << 10 | 1 << 13);
    }
}

static int probe(void)
{
    uint32_t slot = 0, last = 0;
    for (uint32_t i = 1; i < 32; i++) {
        uint32_t id = pci_read(i, 0);
        if (id != 0xFFFFFFFF) last = i;
        if (id == 0x07770B5D) slot = i;
    }
    if (!slot) return print("no vmmci\n"), 0;
    print(slot == last ? "vmmci is last\n" : "vmmci is not last\n");
    field("class", pci_read(slot, 8) >> 8, 6), field("subsystem", pci_read(slot, 0x2C), 8);
    uint32_t bar = pci_read(slot, 0x10);
    pci_write(slot, 0x10, 0xFFFFFFFF);
    field("size", ~(pci_read(slot, 0x10) & ~3u) + 1, 8);
    if (find(words, "moved")) bar = 0x8001;
    pci_write(slot, 0x10, bar);
    pci_write(slot, 4, 1);
    base = bar & 0xFFFC;
    line = (uint8_t)pci_read(slot, 0x3C);
    field("base", base, 4), field("line", line, 2);
    field("level", (in8(0x4D0) | in8(0x4D1) << 8) >> line & 1, 1);

    out8(base + STATUS, 0), out8(base + STATUS, 3);
    uint32_t offered = in32(base + HOST_FEATURES);
    field("features", offered, 1);
    out32(base + GUEST_FEATURES, find(words, "bare") ? 1 : offered);
    interrupts((uint16_t)(1 << line | 1 << 2 | (find(words, "tick") ? 1 : 0)));
    out8(base + STATUS, 7);
    field("status", in8(base + STATUS), 1);
    return 1;
}

void run(const struct information *info)
{
    words = (const char *)info->cmdline;
    if (find(words, "halt")) {
        interrupts(0);
        print("halted\n");
        for (;;) wait();
    }
    if (!probe()) return;
    if (find(words, "tick")) out8(0x43, 0x34), out8(0x40, (uint8_t)59659), out8(0x40, 59659 >> 8);
    if (find(words, "off")) {
        acknowledge(SHUTDOWN);
        print("going\n");
        return;
    }
    print("ready\n");
    for (uint32_t seen = 0, told = 0;;) {
        wait();
        if (told != ticks) told = ticks, put('.');
        if (seen == rings) continue;
        seen = rings;
        obey(in32(base + COMMAND));
    }
}

__asm__(".globl start\nstart:\n"
        "mov $stack_end, %esp\n"
        "push %ebx\n call run\n"
        "1: cli\n hlt\n jmp 1b\n"
        ".bss\n .align 16\n .skip 4096\nstack_end:\n.text\n");
