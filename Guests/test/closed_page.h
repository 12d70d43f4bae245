// A page that opens when it is touched: for instructions that fault in the middle and go on.
#pragma once
#include "check.h"

static uint8_t *opened;
static int opens;
static void open_page(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)context;
    EQUAL((uintptr_t)info->si_addr & ~(uintptr_t)(PAGE - 1), opened);
    opens++;
    mprotect(opened, PAGE, PROT_READ | PROT_WRITE);
}

// Two pages of cells, each three times its index. `use` gets them twenty times with the second page closed, and opens it.
static int32_t *with_closed_page(void (*use)(int32_t *cells, int round))
{
    handle(SIGSEGV, open_page, 0);
    uint8_t *base = pages(2, PROT_READ | PROT_WRITE);
    int32_t *cells = (int32_t *)base;
    for (int i = 0; i < 2048; i++) cells[i] = i * 3;
    opened = base + PAGE;
    for (int i = 1; i <= 20; i++) {
        mprotect(opened, PAGE, PROT_NONE);
        use(cells, i);
        EQUAL(opens, i);
    }
    return cells;
}
