# /init of the hunt's guests: says that it is there, and sleeps. x86-64, without a library: nothing else of it has to be right.

        .globl  _start
        .text
_start:
        mov     $1, %eax                # write(1, line, length)
        mov     $1, %edi
        lea     line(%rip), %rsi
        mov     $(end - line), %edx
        syscall
1:      mov     $34, %eax               # pause()
        syscall
        jmp     1b

line:   .ascii  "hunt: init\n"
end:
