#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <link.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "CLinuxProcess.h"

union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(CLINUX_PACKET_DESCRIPTORS * sizeof(int))];
};

ssize_t clinux_send_packet(int socket, const void *bytes, size_t count, const int *descriptors, int descriptor_count) {
    if (descriptor_count < 0 || descriptor_count > CLINUX_PACKET_DESCRIPTORS) {
        errno = E2BIG;
        return -1;
    }
    union control control;
    memset(&control, 0, sizeof control);
    struct iovec vector = {(void *)(uintptr_t)bytes, count};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (descriptor_count > 0) {
        size_t size = (size_t)descriptor_count * sizeof(int);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(size);
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = CMSG_LEN(size);
        memcpy(CMSG_DATA(&control.header), descriptors, size);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t clinux_receive_packet(
    int socket, void *bytes, size_t capacity, int *descriptors, int *descriptor_count, int *flags) {
    union control control;
    struct iovec vector = {bytes, capacity};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    *descriptor_count = 0;
    ssize_t count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (count < 0) return count;
    *flags = message.msg_flags;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
        size_t arrived = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < arrived && *descriptor_count < CLINUX_PACKET_DESCRIPTORS; i++)
            memcpy(&descriptors[(*descriptor_count)++], CMSG_DATA(header) + i * sizeof(int), sizeof(int));
    }
    return count;
}

int clinux_peer_credentials(int socket, int32_t *pid, uint32_t *uid, uint32_t *gid) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return -1;
    *pid = peer.pid;
    *uid = peer.uid;
    *gid = peer.gid;
    return 0;
}

static int argument_count;
static char **argument_values;

// glibc passes main's arguments to constructors too.
__attribute__((constructor)) static void remember_arguments(int count, char **values) {
    argument_count = count;
    argument_values = values;
}

const char *clinux_argument(int index) {
    return index >= 0 && index < argument_count ? argument_values[index] : NULL;
}

struct object_search { size_t index; char *path; size_t capacity; long length; };

static int find_object(struct dl_phdr_info *info, size_t size, void *argument) {
    (void)size;
    struct object_search *search = argument;
    if (search->index-- != 0) return 0;
    search->length = (long)strlen(info->dlpi_name);
    if (search->capacity > 0) {
        strncpy(search->path, info->dlpi_name, search->capacity - 1);
        search->path[search->capacity - 1] = 0;
    }
    return 1;
}

long clinux_loaded_object(size_t index, char *path, size_t capacity) {
    struct object_search search = {index, path, capacity, -1};
    dl_iterate_phdr(find_object, &search);
    return search.length;
}

const char *clinux_interpreter(void) {
    const ElfW(Phdr) *headers = (const ElfW(Phdr) *)getauxval(AT_PHDR);
    size_t count = getauxval(AT_PHNUM);
    ElfW(Addr) base = 0;
    for (size_t i = 0; headers && i < count; i++)
        if (headers[i].p_type == PT_PHDR) base = (ElfW(Addr))headers - headers[i].p_vaddr;
    for (size_t i = 0; headers && i < count; i++)
        if (headers[i].p_type == PT_INTERP) return (const char *)(base + headers[i].p_vaddr);
    return NULL;
}

int clinux_keep_capabilities(uint64_t kept) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    for (int i = 0; i < 2; i++) data[i].effective = data[i].permitted = (uint32_t)(kept >> 32 * i);
    return (int)syscall(SYS_capset, &header, data);
}

uint64_t clinux_capabilities(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) != 0) return 0;
    return (uint64_t)data[1].effective << 32 | data[0].effective;
}

int clinux_add_mount_attributes(const char *path, uint64_t attributes) {
    struct mount_attr change = {.attr_set = attributes};
    return (int)syscall(SYS_mount_setattr, AT_FDCWD, path, 0, &change, sizeof change);
}

static int reap(pid_t pid) {
    if (pid < 0) return -1;
    while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR) {}
    return 0;
}

int clinux_probe_fork(void) {
    pid_t pid = (pid_t)syscall(SYS_fork);
    if (pid == 0) _exit(0);
    return reap(pid);
}

int clinux_probe_vfork(void) {
    pid_t pid = vfork();
    if (pid == 0) _exit(0);
    return reap(pid);
}

int clinux_probe_clone(unsigned long flags) {
    pid_t pid = (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, 0);
    if (pid == 0) _exit(0);
    return reap(pid);
}

long clinux_probe_int80(void) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(20L) : "memory", "r8", "r9", "r10", "r11");
    return result;
}

long clinux_probe_x32(void) { return syscall(0x40000000L | SYS_getpid); }
