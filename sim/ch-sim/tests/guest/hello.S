/* A guest of a few instructions: says that it runs on the first serial port, then halts for ever.
   Entered in 32-bit mode through the PVH note. */
        .section .note.pvh, "a", @note
        .balign 4
        .long   4               /* bytes of the owner's name */
        .long   4               /* bytes of the entry address */
        .long   18              /* physical 32-bit entry point */
        .asciz  "Xen"
        .long   entry

        .text
        .code32
        .globl  entry
entry:
        cli
        movl    $words, %esi
        movw    $0x3f8, %dx
next:
        lodsb
        testb   %al, %al
        jz      stop
        outb    %al, %dx
        jmp     next
stop:
        hlt
        jmp     stop

        .section .rodata
words:  .asciz  "guest up\r\n"

        .section .note.GNU-stack, "", @progbits
