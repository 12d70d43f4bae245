# vmd for Linux. `make help` lists what there is to make.

PREFIX  ?= /usr/local
DESTDIR ?=
SWIFT   ?= swift
MEMORY  ?= 512M

# Everything that is fetched or made for guests, outside of SwiftPM's own folder so that `swift package clean`
# does not cost a download.
GUESTS  := .build-guests
KERNEL  ?= $(GUESTS)/vmlinuz
INITRD  ?= $(GUESTS)/initramfs.cpio
CMDLINE ?= console=ttyS0
VMCTL   := .build/release/vmctl
VMD     := .build/release/vmd

# What has to be there to build the product, and to make and test a guest.
BUILD_PACKAGES := libseccomp-dev libzydis-dev zlib1g-dev libzstd-dev
GUEST_PACKAGES := binutils busybox-static cpio gcc libc6-dev gcc-multilib
# What machines boot by that are given no kernel, and by the network.
FIRMWARE_PACKAGES := seabios ipxe-qemu
# What our images are compared with.
IMAGE_PACKAGES := qemu-utils
# What tests need beside: discs are made by xorriso.
TEST_PACKAGES := xorriso $(IMAGE_PACKAGES)
# What makes disks that firmware boots, for tests.
DISK_PACKAGES := grub-pc-bin grub-common mtools
BENCH_PACKAGES := qemu-system-x86 $(IMAGE_PACKAGES)

.DEFAULT_GOAL := help
.PHONY: run test fuzz bench bench-daemon bench-images build setup guests guests32 multiboot multiboot2 openbsd control others installer memtest debian install uninstall clean help

help:
	@echo 'make run      boot Debian'"'"'s Linux kernel to a shell on this terminal'
	@echo 'make test     all tests, those that boot whole guests included'
	@echo 'make fuzz     random instructions, hostile guests and clients, SECONDS_TO_RUN=60'
	@echo 'make bench    measure against qemu-system-x86_64 -accel tcg and qemu-img, side by side'
	@echo 'make bench-daemon   what 100 idle machines cost'
	@echo 'make bench-images   disk images against qemu-img'
	@echo 'make build    build $(VMCTL) and $(VMD)'
	@echo 'make setup    install the packages that are missing (apt-get; needs root)'
	@echo 'make guests   fetch the kernels and make the initramfs: $(KERNEL), $(INITRD)'
	@echo 'make debian   make a Debian system on a disk, for tests (needs root): $(GUESTS)/debian.qcow2'
	@echo 'make installer   fetch Debian'"'"'s installer (140 MB), for tests that are skipped without'
	@echo 'make memtest  let memtest86+ make one full pass over a machine of 16 MB'
	@echo 'make install  copy vmctl, vmd, manual pages, completions and systemd units below PREFIX ($(PREFIX)), DESTDIR is honoured'
	@echo 'make uninstall   remove those'
	@echo 'make clean    remove everything that was built or fetched'
	@echo
	@echo 'make run KERNEL=file INITRD=file CMDLINE="..." MEMORY=1G boots something else.'

# $(call need,packages): installs those that are missing, in one go, and is silent when there are none.
need = @Guests/need-packages $(1)

setup:
	$(call need,$(BUILD_PACKAGES) $(GUEST_PACKAGES) $(FIRMWARE_PACKAGES))

# Swift's libraries are linked in: the program starts sooner and runs where no Swift is installed. So is the one of C++ that they
# need, of which a linker takes the shared one unless it meets the other first: its symbols alone are a tenth of a start.
STATIC := $(CURDIR)/.build/static
RELEASE := -c release --static-swift-stdlib -Xswiftc -L$(STATIC)

build: setup
	@mkdir -p $(STATIC)
	@library=$$(gcc -print-file-name=libstdc++.a); [ ! -e "$$library" ] || ln -sf "$$library" $(STATIC)/libstdc++.a
	$(SWIFT) build $(RELEASE) --product vmctl
	$(SWIFT) build $(RELEASE) --product vmd

guests: $(GUESTS)/vmlinuz $(GUESTS)/initramfs.cpio $(GUESTS)/initramfs-virtio.cpio guests32 multiboot multiboot2 openbsd control \
	others $(GUESTS)/grub.raw $(GUESTS)/grub.iso debian

# The kernel is fetched once: a rebuild needs no network.
$(GUESTS)/vmlinuz:
	@Guests/fetch-kernel $@

$(GUESTS)/initramfs.cpio: Guests/make-initramfs Guests/init $(GUESTS)/guest-test $(GUESTS)/guest-test32 $(GUESTS)/guest-bench | setup
	@Guests/make-initramfs $@ /bin/busybox Guests/init $(GUESTS)/guest-test $(GUESTS)/guest-test32 $(GUESTS)/guest-bench

# The same with drivers for virtio, which Debian's kernel has as modules: the kernel unpacks one archive after the other.
$(GUESTS)/modules.cpio: Guests/make-modules $(GUESTS)/guest-disk | setup $(GUESTS)/vmlinuz
	@Guests/make-modules $@ $(GUESTS)/vmlinuz $(GUESTS)/guest-disk

$(GUESTS)/initramfs-virtio.cpio: $(GUESTS)/initramfs.cpio $(GUESTS)/modules.cpio
	@cat $^ >$@

# A disk that firmware boots: GRUB, then the kernel, which shows what it runs on and powers off.
$(GUESTS)/grub.raw: Guests/make-disk $(GUESTS)/vmlinuz $(GUESTS)/initramfs.cpio
	$(call need,$(DISK_PACKAGES))
	@Guests/make-disk $@ "$$(printf 'linux /vmlinuz console=ttyS0 vmd.run=demo\ninitrd /initrd')" \
	    vmlinuz=$(GUESTS)/vmlinuz initrd=$(GUESTS)/initramfs.cpio

# A CD that firmware boots, with the same.
$(GUESTS)/grub.iso: Guests/make-cd $(GUESTS)/vmlinuz $(GUESTS)/initramfs.cpio
	$(call need,$(DISK_PACKAGES) $(TEST_PACKAGES))
	@Guests/make-cd $@ $(GUESTS)/vmlinuz $(GUESTS)/initramfs.cpio 'console=ttyS0 vmd.run=demo'

# A Debian system on a disk, made on the spot of the host's archive; its tests are skipped where that cannot be reached. Root alone
# can make one.
DEBIAN_PACKAGES := mmdebstrap e2fsprogs fdisk

debian: build
	@if [ ! -e $(GUESTS)/debian.qcow2 ] && [ "$$(id -u)" = 0 ]; then \
	    Guests/need-packages $(DEBIAN_PACKAGES) && rm -f $(GUESTS)/debian.raw && \
	    { Guests/make-debian $(GUESTS)/debian.raw || echo 'No Debian system: what made it failed'; } && \
	    if [ -e $(GUESTS)/debian.raw ]; then \
	        $(VMCTL) create -i $(GUESTS)/debian.raw $(GUESTS)/debian.qcow2 && rm $(GUESTS)/debian.raw; fi; fi

# 32-bit guests come from another archive than the host's: where it cannot be reached, their tests are skipped.
GUESTS32 := $(GUESTS)/i386

guests32: $(GUESTS32)/guest-test | setup
	$(call need,$(DISK_PACKAGES))
	@[ $(GUESTS32)/fetched -nt Guests/fetch-i386 ] || Guests/fetch-i386 $(GUESTS32)
	@if [ -e $(GUESTS32)/busybox ]; then $(MAKE) --no-print-directory $(GUESTS32)/initramfs.cpio; fi
	@if [ -e $(MACH)/gnumach ]; then $(MAKE) --no-print-directory $(MACH)/mach.raw; fi

$(GUESTS32)/initramfs.cpio: Guests/make-initramfs Guests/init $(GUESTS32)/busybox $(GUESTS32)/guest-test
	@Guests/make-initramfs $@ $(GUESTS32)/busybox Guests/init $(GUESTS32)/guest-test

# Without a C library, whose own instructions would come beside the program's. No vectors where it does not ask for them.
$(GUESTS32)/guest-test: Guests/program32.c | setup
	@mkdir -p $(GUESTS32)
	gcc -m32 -std=gnu11 -Wall -Wextra -O1 -static -nostdlib -ffreestanding -no-pie -fno-pie -fno-stack-protector -mno-sse -o $@ $<

# Static, since the guest has no C library. The test program's assembly pushes below the stack pointer's place
# and takes 32-bit addresses of its data; its tests run in the order in which they are written.
GUEST_CFLAGS := -std=gnu11 -Wall -Wextra -static
TEST_CFLAGS  := -O1 -no-pie -mno-red-zone -fno-toplevel-reorder -pthread

$(GUESTS)/guest-test: $(wildcard Guests/test/*.c Guests/test/*.h) | setup
	@mkdir -p $(GUESTS)
	gcc $(GUEST_CFLAGS) $(TEST_CFLAGS) -o $@ $(filter %.c,$^) -lm

# The same for 32-bit programs, which a 64-bit kernel runs in compatibility mode.
$(GUESTS)/guest-test32: Guests/test/main.c Guests/test/timing.c Guests/test/check.h $(wildcard Guests/test32/*.c) | setup
	@mkdir -p $(GUESTS)
	gcc -m32 $(GUEST_CFLAGS) $(TEST_CFLAGS) -o $@ $(filter %.c,$^) -lm

$(GUESTS)/guest-disk: Guests/disk/disk.c | setup
	@mkdir -p $(GUESTS)
	gcc $(GUEST_CFLAGS) -O2 -o $@ $<

$(GUESTS)/guest-bench: $(wildcard Guests/bench/*.c Guests/bench/*.h) | setup
	@mkdir -p $(GUESTS)
	gcc $(GUEST_CFLAGS) -O2 -pthread -o $@ $(filter %.c,$^)

# The benchmark's long jobs, and the initramfs with them.
$(GUESTS)/jobs.cpio: Guests/make-jobs | setup
	@Guests/make-jobs $(GUESTS)/jobs

$(GUESTS)/initramfs-jobs.cpio: $(GUESTS)/initramfs.cpio $(GUESTS)/jobs.cpio
	@cat $^ >$@

# Kernels that others wrote; their tests are skipped where they cannot be had.
OTHERS := $(GUESTS)/others

others: | setup
	$(call need,$(DISK_PACKAGES) $(TEST_PACKAGES))
	@[ $(OTHERS)/fetched -nt Guests/fetch-others ] || Guests/fetch-others $(OTHERS)
	@if [ -e $(OTHERS)/isolinux/isolinux.bin ] && [ -e $(OTHERS)/memtest64 ]; then \
	    $(MAKE) --no-print-directory $(OTHERS)/isolinux.iso; fi

# A CD by isolinux, with a menu.
$(OTHERS)/isolinux.iso: Guests/isolinux.cfg $(OTHERS)/isolinux/isolinux.bin
	@cp Guests/isolinux.cfg $(OTHERS)/memtest64 $(OTHERS)/isolinux
	@xorriso -as mkisofs -quiet -o $@ -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table \
	    $(OTHERS)/isolinux >$@.log 2>&1 || { cat $@.log; exit 1; }
	@rm $@.log

# Debian's installer, for its tests. It is too much to fetch for every `make test`: they are skipped without.
installer: | setup
	$(call need,$(TEST_PACKAGES) isolinux syslinux-common)
	@[ -e $(GUESTS)/installer/installer.iso ] || Guests/make-installer $(GUESTS)/installer

# The first program of GNU Mach, which Hurd's would be: it says that it is there.
MACH := $(GUESTS32)

$(MACH)/mach-task: Guests/mach-task.c | setup
	@mkdir -p $(MACH)
	gcc -m32 $(KERNEL_FLAGS) -o $@ $<

# A disk from which GRUB loads both.
$(MACH)/mach.raw: Guests/make-disk $(MACH)/gnumach $(MACH)/mach-task
	@Guests/make-disk $@ "$$(printf "multiboot /gnumach console=com0\nmodule /task task '\$$(task-create)' '\$$(task-resume)'")" \
	    gnumach=$(MACH)/gnumach task=$(MACH)/mach-task

# Kernels of a few KB, one for each way to enter a kernel; they print what they were told.
KERNEL_FLAGS := -std=gnu11 -Wall -Wextra -O1 -nostdlib -ffreestanding -no-pie -fno-pie -fno-stack-protector \
	-fno-asynchronous-unwind-tables -mno-sse -Wl,--build-id=none,-no-warn-rwx-segments
MULTIBOOT_FLAGS := -m32 $(KERNEL_FLAGS) -Wl,-T,Guests/multiboot/kernel.ld

# In the three shapes that multiboot loaders take.
MULTIBOOT := $(GUESTS)/multiboot

multiboot: $(MULTIBOOT)/elf32 $(MULTIBOOT)/elf64 $(MULTIBOOT)/flat

$(MULTIBOOT)/%: Guests/multiboot/kernel.c Guests/multiboot/kernel.ld Guests/kernel.h | setup
	@mkdir -p $(MULTIBOOT)
	gcc $(MULTIBOOT_FLAGS) -o $(MULTIBOOT)/elf32 $<
	objcopy -O elf64-x86-64 $(MULTIBOOT)/elf32 $(MULTIBOOT)/elf64
	gcc $(MULTIBOOT_FLAGS) -DFLAT -o $(MULTIBOOT)/flat.elf $<
	objcopy -O binary $(MULTIBOOT)/flat.elf $(MULTIBOOT)/flat

# The same for version 2, and one that may be moved.
MULTIBOOT2 := $(GUESTS)/multiboot2

multiboot2: $(MULTIBOOT2)/elf32 $(MULTIBOOT2)/elf64 $(MULTIBOOT2)/flat $(MULTIBOOT2)/moved

$(MULTIBOOT2)/%: Guests/multiboot2/kernel.c Guests/multiboot/kernel.ld Guests/kernel.h | setup
	@mkdir -p $(MULTIBOOT2)
	gcc $(MULTIBOOT_FLAGS) -o $(MULTIBOOT2)/elf32 $<
	objcopy -O elf64-x86-64 $(MULTIBOOT2)/elf32 $(MULTIBOOT2)/elf64
	gcc $(MULTIBOOT_FLAGS) -DFLAT -o $(MULTIBOOT2)/flat.elf $<
	objcopy -O binary $(MULTIBOOT2)/flat.elf $(MULTIBOOT2)/flat
	gcc $(MULTIBOOT_FLAGS) -DMOVED -fpie -o $(MULTIBOOT2)/moved $<

# One that says it is OpenBSD's, for both processors, as it is and packed.
OPENBSD := $(GUESTS)/openbsd

openbsd: $(OPENBSD)/amd64 $(OPENBSD)/i386 $(OPENBSD)/amd64.gz

$(OPENBSD)/%: Guests/openbsd/kernel.c Guests/openbsd/kernel.ld Guests/kernel.h | setup
	@mkdir -p $(OPENBSD)
	gcc -m64 -mno-red-zone $(KERNEL_FLAGS) -Wl,-T,Guests/openbsd/kernel.ld,--defsym=virtual_base=0xffffffff80000000 \
	    -o $(OPENBSD)/amd64 $<
	gcc -m32 $(KERNEL_FLAGS) -Wl,-T,Guests/openbsd/kernel.ld,--defsym=virtual_base=0xd0000000 -o $(OPENBSD)/i386 $<
	gzip -9kfn $(OPENBSD)/amd64

# A kernel for vmmci, and one that only halts.
CONTROL := $(GUESTS)/control

control: $(CONTROL)/kernel

$(CONTROL)/kernel: Guests/control/kernel.c Guests/multiboot/kernel.ld Guests/kernel.h | setup
	@mkdir -p $(CONTROL)
	gcc $(MULTIBOOT_FLAGS) -o $@ $<

# Without a terminal nobody could leave the shell: the guest then shows what runs and powers itself off.
run: build guests
	@if [ -t 0 ] && [ -t 1 ]; then demo=; else demo=' vmd.run=demo'; fi; \
	exec $(VMCTL) run -m $(MEMORY) -b $(KERNEL) --initrd $(INITRD) --cmdline "$(CMDLINE)$$demo"

# Guest tests drive the release build, as users have it; unit tests run in a debug build, with all its checks.
test: build guests
	$(call need,$(TEST_PACKAGES))
	SWIFT='$(SWIFT)' Tests/run

# Random instructions on the CPU and on the translator, with new seeds, for so many seconds.
SECONDS_TO_RUN ?= 60
fuzz: build guests
	VMD_FUZZ_SECONDS=$(SECONDS_TO_RUN) $(SWIFT) test --filter "SiliconTests|AttackFuzzTests|VirtioFuzzTests|VMDKHostileTests|QCOW2FuzzTests|DaemonTests/Hostile"

# One full pass of memtest86+, whose tests are too long for `make test`.
memtest: build others
	VMD_MEMTEST=1 $(SWIFT) test --filter "one full pass in 16 MB"

bench: build guests $(GUESTS)/initramfs-jobs.cpio $(GUESTS)/initramfs-virtio.cpio
	$(call need,$(BENCH_PACKAGES))
	Benchmarks/run
	Benchmarks/disk
	Benchmarks/boot
	Benchmarks/daemon
	Benchmarks/images

# The daemon's part of it alone.
bench-daemon: build control
	Benchmarks/daemon

# The disk images' part of it.
bench-images: build
	$(call need,$(IMAGE_PACKAGES))
	Benchmarks/images

# Files below PREFIX; systemd looks for its own there too when PREFIX is /usr or /usr/local.
BINDIR  := $(DESTDIR)$(PREFIX)/bin
SBINDIR := $(DESTDIR)$(PREFIX)/sbin
MANDIR  := $(DESTDIR)$(PREFIX)/share/man
LIBDIR  := $(DESTDIR)$(PREFIX)/lib
# Where shells look for what completes a command's arguments.
BASH_COMPLETIONS ?= $(PREFIX)/share/bash-completion/completions
ZSH_COMPLETIONS  ?= $(PREFIX)/share/zsh/site-functions
FISH_COMPLETIONS ?= $(PREFIX)/share/fish/vendor_completions.d

UNITS := $(foreach kind,system user,$(kind)/vmd.service $(kind)/vmd.socket)

install: build
	install -d $(BINDIR) $(SBINDIR) $(MANDIR)/man8 $(MANDIR)/man5 $(LIBDIR)/systemd/system $(LIBDIR)/systemd/user \
	    $(LIBDIR)/sysusers.d $(LIBDIR)/tmpfiles.d
	install -m 755 $(VMCTL) $(BINDIR)/vmctl
	install -m 755 $(VMD) $(SBINDIR)/vmd
	install -m 644 man/vmctl.8 man/vmd.8 $(MANDIR)/man8
	install -m 644 man/vm.conf.5 $(MANDIR)/man5
	for unit in $(UNITS); do \
	    sed 's|@PREFIX@|$(PREFIX)|' Distribution/$$unit >$(LIBDIR)/systemd/$$unit && \
	    chmod 644 $(LIBDIR)/systemd/$$unit || exit 1; done
	install -m 644 Distribution/sysusers.conf $(LIBDIR)/sysusers.d/vmd.conf
	install -m 644 Distribution/tmpfiles.conf $(LIBDIR)/tmpfiles.d/vmd.conf
	install -D -m 644 Completions/vmctl.bash $(DESTDIR)$(BASH_COMPLETIONS)/vmctl
	install -D -m 644 Completions/_vmctl $(DESTDIR)$(ZSH_COMPLETIONS)/_vmctl
	install -D -m 644 Completions/vmctl.fish $(DESTDIR)$(FISH_COMPLETIONS)/vmctl.fish

uninstall:
	rm -f $(BINDIR)/vmctl $(SBINDIR)/vmd $(MANDIR)/man8/vmctl.8 $(MANDIR)/man8/vmd.8 $(MANDIR)/man5/vm.conf.5 \
	    $(addprefix $(LIBDIR)/systemd/,$(UNITS)) $(LIBDIR)/sysusers.d/vmd.conf $(LIBDIR)/tmpfiles.d/vmd.conf \
	    $(DESTDIR)$(BASH_COMPLETIONS)/vmctl $(DESTDIR)$(ZSH_COMPLETIONS)/_vmctl \
	    $(DESTDIR)$(FISH_COMPLETIONS)/vmctl.fish

clean:
	rm -rf .build $(GUESTS)
