/* The least that runs a flat firmware image on KVM: what one VM exit costs when nothing is done with it.
 *
 * exits IMAGE: prints what the guest writes to port 0x3f8, and answers every read with 0x60. */

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static void *map(size_t size, int fd)
{
    int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    return mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
}

int main(int argc, char **argv)
{
    const size_t image_bytes = 65536, ram_bytes = 1 << 20;
    int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), image = open(argv[argc - 1], O_RDONLY);
    uint8_t *ram = map(ram_bytes, -1), *top = map(image_bytes, -1);
    if (vm < 0 || read(image, top, image_bytes) != (ssize_t) image_bytes)
        return 1;
    memcpy(ram + ram_bytes - image_bytes, top, image_bytes);
    struct kvm_userspace_memory_region low = {0, 0, 0, ram_bytes, (uintptr_t) ram};
    struct kvm_userspace_memory_region high = {1, 0, 0x100000000 - image_bytes, image_bytes, (uintptr_t) top};
    ioctl(vm, KVM_SET_TSS_ADDR, 0xfeffd000);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &low);
    ioctl(vm, KVM_SET_USER_MEMORY_REGION, &high);
    int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    struct kvm_run *run = map(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), vcpu);
    while (ioctl(vcpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO) {
        uint8_t *data = (uint8_t *) run + run->io.data_offset;
        if (run->io.direction == KVM_EXIT_IO_IN)
            *data = 0x60;
        else if (run->io.port == 0x3f8 && write(1, data, 1) != 1)
            return 0;
    }
    return 1;
}
