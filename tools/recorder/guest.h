/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of the recorder's program share: the guest's memory and vCPU, and how an operation is answered. */
#ifndef GUEST_H
#define GUEST_H

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 0x1000ul
#define LARGE 0x200000ul

/* The slot at 0: page tables, descriptors, code and stacks, and from HYPERVISOR on what nested.c needs. */
enum { TABLES = 0x2000, DIRECTORIES = TABLES + 0x2000, GDT = 0x9000, CODE = 0x10000, HYPERVISOR = 0x20000, STACK = 0x1f0000 };
enum { CODE_SELECTOR = 8, DATA_SELECTOR = 16, GDT_LIMIT = 0x1f };
enum { ENTRIES = 512 }; /* of a page table */

enum { EFER_LME = 1 << 8, EFER_LMA = 1 << 10, EFER_NXE = 1 << 11, EFER_SVME = 1 << 12 };
enum { CR4_PAE = 1 << 5, CR4_OSFXSR = 1 << 9, CR4_VMXE = 1 << 13, CR4_SMAP = 1 << 21 };
#define CR0_LONG_MODE 0x80050033ull /* PG AM WP NE ET MP PE */
enum { RFLAGS_FIXED = 2, RFLAGS_AC = 1 << 18 };

/* What follows an operation's name: as numbers, and as words. */
enum { WORDS = 8 };
struct words { uint64_t n[WORDS]; const char *text[WORDS]; const char *name; char op; };

extern int kvm, vm, vcpu;
extern struct kvm_run *run;
extern struct kvm_sregs l1_registers; /* those that the vCPU started with, or that `nest` gave it */

uint8_t *hva(uint64_t gpa);	       /* where user space keeps the page at a guest's address; NULL outside of the slots */
uint64_t piece(char op);	       /* where the guest's code for an access begins */
int result(int rc);		       /* answers with rc and errno */
void count(bool report);	       /* the growth of the statistics since the last call; only counted, if not reported */
void report_exit(const struct kvm_run *run); /* what an exit to user space says */
void enter(const char *prefix);	       /* KVM_RUN until something else than MMIO ends it; reports each */
void mark(const char *format, ...) __attribute__((format(printf, 1, 2)));
void fail(const char *what);
int set_attributes(uint64_t gpa, uint64_t size, bool private);
int set_cpuid(int fd);		       /* all that KVM supports */
struct kvm_run *map_run(int fd);
void unmap_run(struct kvm_run *shared);

/* nested.c: a guest of the guest */
void forget_nesting(void);
void report_mode(void);		       /* after each KVM_RUN: whether it ended in L2 */
void return_to_l1(void);	       /* before anything that L1 does itself */
void op_nest(struct words *w);
void op_l2map(struct words *w);
void op_l2access(struct words *w);
void op_l2cr3(struct words *w);
void op_l2leave(struct words *w);
void op_run(struct words *w);

/* par.c: two vCPUs at once */
void forget_second_vcpu(void);
void op_par(struct words *w);

#endif
