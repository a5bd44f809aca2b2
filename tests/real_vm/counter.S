/* A guest of a few instructions that counts. It touches as much memory as `touch=MIB` on its command line says
   and writes "guest up"; with `idle` on its command line it halts then. Otherwise it counts for ever: one for
   each 2^20 ticks of the time stamp counter that pass while it runs, and one for every gap, however long. Every
   sixteenth is written to the first serial port as "n=XXXXXXXX". The counter is in memory and in no device, so
   a copy of its memory goes on from there.

   Entered in 32-bit mode through the PVH note, and stays there: no paging, no interrupts, no descriptor tables
   of its own, so that every kind of KVM can run it. */
        .set    TICK, 20                /* power of two */
        .set    TOUCH_FROM, 0x1000000   /* 16 MiB: behind the image and its stack */
        .set    START_CMDLINE, 24       /* hvm_start_info: address of the command line */

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
        cld
        movl    $stack_end, %esp
        movl    START_CMDLINE(%ebx), %esi
        testl   %esi, %esi
        jz      ready
scan:   cmpb    $0, (%esi)
        je      ready
        cmpl    $0x656c6469, (%esi)     /* "idle" */
        jne     1f
        movl    $1, idle
1:      cmpl    $0x63756f74, (%esi)     /* "touc" */
        jne     2f
        cmpw    $0x3d68, 4(%esi)        /* "h=" */
        jne     2f
        addl    $6, %esi
        call    touch
        jmp     scan
2:      incl    %esi
        jmp     scan

ready:  movl    $up, %esi
        call    print
        cmpl    $0, idle
        jne     halt
        rdtsc
        movl    %eax, last
count:  rdtsc
        movl    %eax, %ebx
        subl    last, %eax
        shrl    $TICK, %eax
        jz      count
        movl    %ebx, last
        incl    counter
        testl   $15, counter
        jnz     count
        movl    $name, %esi
        call    print
        movl    counter, %ebx
        movl    $8, %ecx
digit:  roll    $4, %ebx
        movl    %ebx, %eax
        andl    $15, %eax
        movb    digits(%eax), %al
        movw    $0x3f8, %dx
        outb    %al, %dx
        decl    %ecx
        jnz     digit
        movl    $newline, %esi
        call    print
        jmp     count

halt:   hlt
        jmp     halt

/* Writes the text at %esi. */
print:  movw    $0x3f8, %dx
1:      movb    (%esi), %al
        testb   %al, %al
        jz      2f
        outb    %al, %dx
        incl    %esi
        jmp     1b
2:      ret

/* Reads a number at %esi and writes a word to each page of so many MiB. */
touch:  xorl    %eax, %eax
1:      movzbl  (%esi), %edx
        subl    $48, %edx
        cmpl    $9, %edx
        ja      2f
        imull   $10, %eax, %eax
        addl    %edx, %eax
        incl    %esi
        jmp     1b
2:      shll    $8, %eax                /* pages */
        movl    $TOUCH_FROM, %edi
3:      testl   %eax, %eax
        jz      4f
        movl    %edi, (%edi)
        addl    $4096, %edi
        decl    %eax
        jmp     3b
4:      ret

        .data
        .balign 4
counter: .long  0
last:   .long   0
idle:   .long   0
up:     .asciz  "guest up\r\n"
name:   .asciz  "n="
newline: .asciz "\r\n"
digits: .ascii  "0123456789abcdef"

        .bss
        .balign 16
stack:  .skip   4096
stack_end:

        .section .note.GNU-stack, "", @progbits
