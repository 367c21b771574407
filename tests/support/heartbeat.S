# A guest in 64 KiB: flat firmware that beats on COM1, for tests and the start-up bench.
#
# It runs wherever there is a reset vector: on this project's VMM, on QEMU, and under a KVM that can do no more than real mode
# and 16-bit protected mode. The image lies below 4 GiB and, the same bytes, below 1 MiB, where it runs. Low memory holds
# its stack and variables.
#
# What it says, a line each:
#   H                     the first byte of all comes after one read of LSR
#   vmservice heartbeat
#   beat N                every 100 ms by the local APIC's timer, N = 1, 2, …            (BEATS = 1)
#   aps N                 when N other vCPUs have begun to run                           (SMP = 1)
#   power button          when the event register says so; S5 follows
#
# What it understands on COM1: r = reset by the keyboard controller, a = by the ACPI reset register, t = by triple fault,
# o = S5; every other byte is echoed.
#
# Symbols to set: BEATS, HALT (halt between events, woken by interrupts; else poll without rest), SMP (start all other
# vCPUs, each of which counts in low memory without a single VM exit).
#
# One code for two modes. Its segment in real mode is 0xf000; in protected mode a 16-bit code segment has that base, so offsets
# stay the same. Protected mode, with %es over all 4 GiB, is for the two APICs; interrupts are only taken in real mode.
# In both, %ds is the image, %ss and %fs are low memory from 0.

        .code16

        .set COM1, 0x3f8
        .set COM1_IER, 0x3f9
        .set COM1_FCR, 0x3fa
        .set COM1_MCR, 0x3fc
        .set COM1_LSR, 0x3fd
        .set LSR_DATA_READY, 0x01
        .set LSR_THR_EMPTY, 0x20
        .set KEYBOARD_COMMAND, 0x64
        .set POWER, 0x600
        .set S5, 0x34
        .set EVENTS, 0xb000
        .set POWER_BUTTON, 0x08
        .set NOBODY, 0xff                       # what a port without a device reads as

        .set LAPIC_EOI, 0xfee000b0
        .set LAPIC_SPURIOUS, 0xfee000f0
        .set LAPIC_ICR, 0xfee00300
        .set LAPIC_TIMER, 0xfee00320
        .set LAPIC_TIMER_INITIAL, 0xfee00380
        .set LAPIC_TIMER_CURRENT, 0xfee00390
        .set LAPIC_TIMER_DIVIDE, 0xfee003e0
        .set LAPIC_ENABLE, 0x100
        .set TIMER_MASKED, 1 << 16
        .set TIMER_PERIODIC, 1 << 17
        .set DIVIDE_BY_1, 0x0b
        .set BEAT_TICKS, 100000000              # 100 ms: KVM and QEMU both count nanoseconds
        .set INIT_OTHERS, 0x000c4500            # to all but self
        .set SIPI_OTHERS, 0x000c46f0            # they start at 0xf0000, this image's first byte

        .set IOAPIC, 0xfec00000
        .set IOAPIC_WINDOW, 0xfec00010
        .set IOAPIC_COM1, 0x10 + 2 * 4
        .set IOAPIC_EVENTS, 0x10 + 2 * 5

        .set VECTOR_COM1, 0x24
        .set VECTOR_EVENTS, 0x25
        .set VECTOR_TIMER, 0x26
        .set VECTOR_SPURIOUS, 0xff

# Low memory, by %fs; the real-mode vectors come first
        .set AP_COUNT, 0x600
        .set AP_SHOWN, 0x604
        .set BEAT, 0x608
        .set TICKS, 0x60c
        .set EOIS, 0x610
        .set DIGITS_END, 0x640
        .set STACK_TOP, 0x1000
        .set AP_COUNTERS, 0x1000

        .macro mmio address, value
        movl    $\address, %edi
        movl    $\value, %es:(%edi)
        .endm

# Every vCPU but the first starts here, in real mode with %cs = 0xf000: count itself, then count for ever.
ap_start:
        xorw    %ax, %ax
        movw    %ax, %fs
        movl    $1, %ebx
        lock xaddl %ebx, %fs:AP_COUNT
        shll    $2, %ebx
1:      incl    %fs:AP_COUNTERS(%ebx)
        jmp     1b

start:
        movw    $COM1_LSR, %dx
        inb     %dx, %al
        movw    $COM1, %dx
        movb    $'H', %al
        outb    %al, %dx

        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %fs
        movw    %ax, %ss
        movw    $STACK_TOP, %sp
        movw    %cs, %ax
        movw    %ax, %ds
        xorl    %eax, %eax
        movl    %eax, %fs:AP_COUNT
        movl    %eax, %fs:AP_SHOWN
        movl    %eax, %fs:BEAT
        movl    %eax, %fs:TICKS
        movl    %eax, %fs:EOIS
        movb    $0x01, %al                      # FIFO on, trigger level 1
        movw    $COM1_FCR, %dx
        outb    %al, %dx
        movw    $banner, %si
        call    print

        .if HALT
        call    set_vectors
        call    enter_protected
        mmio    LAPIC_SPURIOUS, LAPIC_ENABLE + VECTOR_SPURIOUS
        mmio    IOAPIC, IOAPIC_COM1
        mmio    IOAPIC_WINDOW, VECTOR_COM1
        mmio    IOAPIC, IOAPIC_EVENTS
        mmio    IOAPIC_WINDOW, VECTOR_EVENTS
        .if BEATS
        mmio    LAPIC_TIMER_DIVIDE, DIVIDE_BY_1
        mmio    LAPIC_TIMER, TIMER_PERIODIC + VECTOR_TIMER
        mmio    LAPIC_TIMER_INITIAL, BEAT_TICKS
        .endif
        call    leave_protected
        movb    $0x01, %al                      # an interrupt for received bytes
        movw    $COM1_IER, %dx
        outb    %al, %dx
        movb    $0x0b, %al                      # DTR, RTS and OUT2, the interrupt's gate on a PC
        movw    $COM1_MCR, %dx
        outb    %al, %dx

# Look, then halt. What comes between the two is taken by the halt at once, for the interrupt waits until after it.
rest:
        call    poll
        sti
        hlt
        cli
        cmpl    $0, %fs:EOIS
        je      rest
        call    enter_protected
1:      mmio    LAPIC_EOI, 0
        decl    %fs:EOIS
        jnz     1b
        call    leave_protected
        .if BEATS
2:      cmpl    $0, %fs:TICKS
        je      rest
        decl    %fs:TICKS
        call    print_beat
        jmp     2b
        .else
        jmp     rest
        .endif

        .else                                   # not HALT

        call    enter_protected
        mmio    LAPIC_SPURIOUS, LAPIC_ENABLE + VECTOR_SPURIOUS
        .if SMP
        mmio    LAPIC_ICR, INIT_OTHERS
        call    spin
        mmio    LAPIC_ICR, SIPI_OTHERS
        call    spin
        mmio    LAPIC_ICR, SIPI_OTHERS
        .endif
        .if BEATS
        mmio    LAPIC_TIMER_DIVIDE, DIVIDE_BY_1
        mmio    LAPIC_TIMER, TIMER_MASKED + VECTOR_TIMER
        mmio    LAPIC_TIMER_INITIAL, BEAT_TICKS
        .endif
busy:
        call    poll
        call    spin
        .if SMP
        movl    %fs:AP_COUNT, %eax
        cmpl    %fs:AP_SHOWN, %eax
        je      1f
        movl    %eax, %fs:AP_SHOWN
        movw    $aps, %si
        call    print
        movl    %fs:AP_SHOWN, %eax
        call    print_number
1:
        .endif
        .if BEATS
        movl    $LAPIC_TIMER_CURRENT, %edi
        cmpl    $0, %es:(%edi)
        jne     busy
        mmio    LAPIC_TIMER_INITIAL, BEAT_TICKS
        call    print_beat
        .endif
        jmp     busy

spin:
        movw    $2000, %cx
1:      pause
        loop    1b
        ret
        .endif

# Serve the event register and COM1 until both have nothing more to say.
poll:
        movw    $EVENTS, %dx
        inb     %dx, %al
        cmpb    $NOBODY, %al
        je      1f
        testb   $POWER_BUTTON, %al
        jnz     button
1:      movw    $COM1_LSR, %dx
        inb     %dx, %al
        cmpb    $NOBODY, %al
        je      2f
        testb   $LSR_DATA_READY, %al
        jz      2f
        movw    $COM1, %dx
        inb     %dx, %al
        call    command
        jmp     1b
2:      ret

button:
        movw    $button_text, %si
        call    print
power_off:
        movb    $S5, %al
        movw    $POWER, %dx
        outb    %al, %dx
        jmp     stop

command:
        cmpb    $'r', %al
        je      reset_by_keyboard
        cmpb    $'a', %al
        je      reset_by_acpi
        cmpb    $'t', %al
        je      triple_fault
        cmpb    $'o', %al
        je      power_off

# One byte, %al, to COM1.
put:
        pushw   %ax
        movw    $COM1_LSR, %dx
1:      inb     %dx, %al
        testb   $LSR_THR_EMPTY, %al
        jz      1b
        popw    %ax
        movw    $COM1, %dx
        outb    %al, %dx
        ret

# The text at %ds:%si, to its zero byte.
print:
        lodsb
        testb   %al, %al
        jz      1f
        call    put
        jmp     print
1:      ret

        .if BEATS
print_beat:
        movw    $beat, %si
        call    print
        incl    %fs:BEAT
        movl    %fs:BEAT, %eax
        .endif

# %eax in decimal, and a newline.
print_number:
        movw    $DIGITS_END, %di
        movl    $10, %ecx
1:      xorl    %edx, %edx
        divl    %ecx
        addb    $'0', %dl
        decw    %di
        movb    %dl, %fs:(%di)
        testl   %eax, %eax
        jnz     1b
2:      movb    %fs:(%di), %al
        call    put
        incw    %di
        cmpw    $DIGITS_END, %di
        jne     2b
        movb    $'\n', %al
        jmp     put

reset_by_keyboard:
        movb    $0xfe, %al
        outb    %al, $KEYBOARD_COMMAND
        jmp     stop

reset_by_acpi:
        movb    $1, %al
        movw    $POWER, %dx
        outb    %al, %dx
        jmp     stop

# No vector is within an empty table: not that of the division by zero, nor that of the fault which this makes, nor that of the
# double fault. In protected mode, and a division: a KVM that emulates real mode looks at no limit there and knows no int3.
triple_fault:
        call    enter_protected
        lidtl   no_vectors
        xorw    %cx, %cx
        divw    %cx

# The vCPU must not get here before the machine has acted; if it does, it does no harm.
stop:
        cli
        hlt
        jmp     stop

enter_protected:
        cli
        lgdtl   descriptors
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmp    $code - gdt, $1f
1:      movw    $data - gdt, %ax
        movw    %ax, %ds
        movw    $flat - gdt, %ax
        movw    %ax, %es
        movw    $low - gdt, %ax
        movw    %ax, %ss
        movw    %ax, %fs
        ret

# Back with segments of real mode's own size.
leave_protected:
        movw    $low - gdt, %ax
        movw    %ax, %es
        movl    %cr0, %eax
        andb    $0xfe, %al
        movl    %eax, %cr0
        ljmp    $0xf000, $1f
1:      movw    %cs, %ax
        movw    %ax, %ds
        xorw    %ax, %ax
        movw    %ax, %es
        movw    %ax, %ss
        movw    %ax, %fs
        ret

        .if HALT
set_vectors:
        xorw    %di, %di
1:      movw    $ignore, %fs:(%di)
        movw    %cs, %fs:2(%di)
        addw    $4, %di
        cmpw    $1024, %di
        jne     1b
        movw    $on_interrupt, %fs:4 * VECTOR_COM1
        movw    $on_interrupt, %fs:4 * VECTOR_EVENTS
        movw    $on_timer, %fs:4 * VECTOR_TIMER
        ret

# The EOI needs protected mode, so it waits for the main loop.
on_timer:
        incl    %fs:TICKS
on_interrupt:
        incl    %fs:EOIS
ignore:
        iret
        .endif

banner:         .asciz "\nvmservice heartbeat\n"
beat:           .asciz "beat "
aps:            .asciz "aps "
button_text:    .asciz "power button\n"

        .balign 8
gdt:            .quad 0
code:           .quad 0x00009b0f0000ffff        # base 0xf0000, limit 64 KiB, 16 bits
data:           .quad 0x0000930f0000ffff        # the same as data
flat:           .quad 0x00cf93000000ffff        # base 0, limit 4 GiB
low:            .quad 0x000093000000ffff        # base 0, limit 64 KiB, 16 bits
gdt_end:
descriptors:    .word gdt_end - gdt - 1
                .long 0xf0000 + gdt
no_vectors:     .word 0
                .long 0

        .org    0xfff0
        ljmp    $0xf000, $start
        .org    0x10000
