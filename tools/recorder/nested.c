// SPDX-License-Identifier: GPL-2.0-only
/*
 * A guest that runs a guest of its own.
 *
 * `nest` makes the guest (L1) a hypervisor, of a few instructions: VMRUN on AMD, VMLAUNCH on Intel.  `l2r` and its
 * like let it run its own guest (L2) for one access.  L2 halts, which gives L1 the CPU back, and L1 halts, which ends
 * KVM_RUN.  User space fills L1's control block; L1's own code writes the page table that it has for L2 (`l2map`),
 * because KVM keeps a shadow of that table and must see each change of it.
 *
 * Sources: AMD APM vol. 2, appendix B (layout of the VMCB); Intel SDM vol. 3, appendix B (fields of the VMCS).
 */
#include "guest.h"
#include <cpuid.h>

/* --- L1's memory --- */

enum {
	CONTROL = HYPERVISOR,		    /* VMCB, or VMCS */
	OWN_AREA = HYPERVISOR + 0x1000,	    /* AMD: L1's save area; Intel: the VMXON region */
	IO_MAP = HYPERVISOR + 0x2000,	    /* AMD: no port is intercepted (three pages of zeros), … */
	MSR_MAP = HYPERVISOR + 0x6000,	    /* … and no MSR (two pages) */
	POINTERS = HYPERVISOR + 0x8000,	    /* Intel: the two regions' addresses, then what L2 left in RAX */
	FIELDS = POINTERS + 0x100,	    /* Intel: pairs of a field and its value, for L1 to write */
	ANSWERS = HYPERVISOR + 0x9000,	    /* Intel: the fields that L1 reads after L2, … */
	ANSWER_VALUES = ANSWERS + 0x800,    /* … and their values */
	L2_TABLES = HYPERVISOR + 0x10000,   /* the nested page table: its root, and pages of it as they are needed */
	L1_STACK = STACK + 0x8000,
	L1_CODE = CODE + 0x100, L1_RETURN = CODE + 0x180,
};

enum { MSR_FEATURE_CONTROL = 0x3a, MSR_VMX_BASIC = 0x480, MSR_VMX_EPT_CAP = 0x48c };
#define MSR_VM_HSAVE_PA 0xc0010117
enum { RUN_GUEST_MODE = 1 << 2 }; /* kvm_run.flags: Linux include/uapi/asm/kvm.h (v6.3) */

static const uint8_t AMD_CODE[] = {
	0x0f, 0x01, 0xd8, /* vmrun */
	0x0f, 0x01, 0xdc, /* stgi */
	0xf4,		  /* hlt */
};

static const uint8_t INTEL_CODE[] = {
	0xf3, 0x0f, 0xc7, 0x37,	      /*    vmxon (%rdi) */
	0x66, 0x0f, 0xc7, 0x77, 0x08, /*    vmclear 8(%rdi) */
	0x0f, 0xc7, 0x77, 0x08,	      /*    vmptrld 8(%rdi) */
	0x48, 0x8b, 0x13,	      /* 1: mov (%rbx), %rdx */
	0x0f, 0x79, 0x53, 0x08,	      /*    vmwrite 8(%rbx), %rdx */
	0x48, 0x83, 0xc3, 0x10,	      /*    add $16, %rbx */
	0xff, 0xc9,		      /*    dec %ecx */
	0x75, 0xf1,		      /*    jnz 1b */
	0x0f, 0x01, 0xc2,	      /*    vmlaunch */
	0xf4,			      /*    hlt: VMLAUNCH failed */
};
enum { PAST_VMXON = L1_CODE + 4 };

static const uint8_t INTEL_RETURN[] = {
	0x48, 0x89, 0x47, 0x10,		    /*    mov %rax, 16(%rdi) */
	0x49, 0x8b, 0x11,		    /* 1: mov (%r9), %rdx */
	0x41, 0x0f, 0x78, 0x91, 0, 8, 0, 0, /*    vmread %rdx, 0x800(%r9) */
	0x49, 0x83, 0xc1, 0x08,		    /*    add $8, %r9 */
	0x41, 0xff, 0xca,		    /*    dec %r10d */
	0x75, 0xec,			    /*    jnz 1b */
	0xf4,				    /*    hlt */
};
_Static_assert(ANSWER_VALUES - ANSWERS == 0x800, "vmread's displacement");

/* The fields that L1 reads after L2, by the names that the answers have. */
static const struct { const char *name; uint64_t field; } READ_BACK[] = {
	{ "exit_reason", 0x4402 }, { "qualification", 0x6400 }, { "gpa", 0x2400 },
	{ "rip", 0x681e },	   { "instr_error", 0x4400 },	{ "gla", 0x640a },
};
enum { N_READ_BACK = sizeof(READ_BACK) / sizeof(*READ_BACK) };

static bool nested, nested_paging, accessed_dirty, intel, in_l2, vmx_on, halted;
static uint64_t l2_cr3, next_table;

static uint64_t *at(uint64_t gpa)
{
	return (uint64_t *)hva(gpa);
}

void forget_nesting(void)
{
	nested = in_l2 = vmx_on = halted = false;
}

void report_mode(void)
{
	in_l2 = nested && run->flags & RUN_GUEST_MODE;
	halted = run->exit_reason == KVM_EXIT_HLT;
	if (nested)
		printf(", \"guest_mode\": %d", in_l2);
}

/* --- MSRs --- */

struct one_msr { struct kvm_msrs head; struct kvm_msr_entry entry; };

static uint64_t msr(uint32_t index)
{
	struct one_msr request = { .head.nmsrs = 1, .entry.index = index };

	return ioctl(vcpu, KVM_GET_MSRS, &request) == 1 ? request.entry.data : 0;
}

static int set_msr(uint32_t index, uint64_t value)
{
	struct one_msr request = { .head.nmsrs = 1, .entry = { .index = index, .data = value } };

	return ioctl(vcpu, KVM_SET_MSRS, &request) == 1 ? 0 : -1;
}

/* --- L1's page table for L2 --- */

/* An entry's bits: present, writable and user on AMD; on Intel readable, writable and executable. */
#define NODE 7ull

/* `words` as in the scenario: nothing allows all; r, n do not allow writing unless w is there; n no execution; L large. */
static uint64_t leaf(uint64_t page, const char *words)
{
	bool writable = strchr(words, 'w') || !strpbrk(words, "rn"), executable = !strchr(words, 'n');
	uint64_t large = strchr(words, 'L') ? 1 << 7 : 0;

	if (intel)
		return page | large | 6 << 3 /* write-back */ | 1 | writable << 1 | executable << 2;
	return page | large | 5 | writable << 1 | (executable ? 0 : 1ull << 63);
}

/* One store by L1. */
static void store(uint64_t address, uint64_t value, const char *prefix)
{
	struct kvm_regs regs = { .rip = piece('w'), .rsi = address, .rax = value, .rsp = STACK, .rflags = RFLAGS_FIXED };

	ioctl(vcpu, KVM_SET_REGS, &regs);
	enter(prefix);
}

/* The table that an entry leads to; a new one if it leads to none. */
static uint64_t table_below(uint64_t entry, const char *prefix)
{
	uint64_t value = *at(entry);

	if (!(value & NODE) || value & 1 << 7) {
		value = next_table | NODE;
		memset(at(next_table), 0, PAGE);
		next_table += PAGE;
		store(entry, value, prefix);
	}
	return value & ~(PAGE - 1) & ~(1ull << 63);
}

/* l2map X Y [r][n][L]: L2's page X is L1's page Y.  l2unmap X [L]. */
void op_l2map(struct words *w)
{
	bool unmap = !strcmp(w->name, "l2unmap");
	const char *words = w->text[unmap ? 1 : 2];
	uint64_t x = w->n[0], value, directory, entry;

	if (!nested) {
		printf(", \"error\": \"nest comes first\"");
		return;
	}
	return_to_l1();
	value = unmap ? 0 : leaf(w->n[1], words);
	directory = table_below(L2_TABLES + PAGE + (x >> 30) * 8, "pdpt_");
	entry = directory + (x >> 21) % ENTRIES * 8;
	if (strchr(words, 'L'))
		store(entry, value, "pde_");
	else
		store(table_below(entry, "pde_") + (x >> 12) % ENTRIES * 8, value, "pte_");
}

/* nest [np0|noad]: from now on L1 is a hypervisor; np0: its guest has no nested page table; noad: one without A/D. */
void op_nest(struct words *w)
{
	uint32_t leaves, vendor, rest[2];
	int rc = 0;

	__cpuid(0, leaves, vendor, rest[0], rest[1]);
	intel = vendor == signature_INTEL_ebx;
	memcpy(at(L1_CODE), intel ? INTEL_CODE : AMD_CODE, intel ? sizeof(INTEL_CODE) : sizeof(AMD_CODE));
	memcpy(at(L1_RETURN), INTEL_RETURN, sizeof(INTEL_RETURN));
	l1_registers.efer |= EFER_NXE | (intel ? 0 : EFER_SVME);
	l1_registers.cr4 |= intel ? CR4_VMXE : 0;
	if (intel)
		rc = set_msr(MSR_FEATURE_CONTROL, 5); /* locked, VMX allowed */
	if (!rc)
		rc = ioctl(vcpu, KVM_SET_SREGS, &l1_registers);
	if (!rc && !intel)
		rc = set_msr(MSR_VM_HSAVE_PA, OWN_AREA);
	if (intel)
		*(uint32_t *)at(OWN_AREA) = *(uint32_t *)at(CONTROL) = msr(MSR_VMX_BASIC);
	/* L2's first 2M are L1's: the code and the page table are there. */
	*at(L2_TABLES) = (L2_TABLES + PAGE) | NODE;
	*at(L2_TABLES + PAGE) = (L2_TABLES + 2 * PAGE) | NODE;
	*at(L2_TABLES + 2 * PAGE) = leaf(0, "L");
	next_table = L2_TABLES + 3 * PAGE;
	l2_cr3 = TABLES;
	nested_paging = strcmp(w->text[0], "np0");
	accessed_dirty = strcmp(w->text[0], "noad");
	nested = !rc;
	result(rc);
}

/* --- AMD: the control block --- */

static void set(uint64_t offset, uint64_t value, size_t size)
{
	memcpy(hva(CONTROL + offset), &value, size);
}

static void fill_vmcb(char op, uint64_t value)
{
	enum { SAVED = 0x400, SEGMENTS = SAVED, CS = 1 };

	memset(hva(CONTROL), 0, PAGE);
	set(0x008, ~(1u << 2), 4);		       /* intercepts: every exception but NMI's */
	set(0x00c, 1 << 24 | 1u << 31, 4);	       /* HLT, SHUTDOWN */
	set(0x010, 1 << 0 | 1 << 1, 4);		       /* VMRUN, VMMCALL */
	set(0x040, IO_MAP, 8);
	set(0x048, MSR_MAP, 8);
	set(0x058, 1, 4);			       /* address space 1, … */
	set(0x05c, 1, 1);			       /* … and nothing of it is kept from the last time */
	set(0x090, nested_paging, 8);
	set(0x0b0, nested_paging ? L2_TABLES : 0, 8);  /* nCR3 */
	for (int n = 0; n < 6; n++) {		       /* ES CS SS DS FS GS */
		set(SEGMENTS + 16 * n, n == CS ? CODE_SELECTOR : DATA_SELECTOR, 2);
		set(SEGMENTS + 16 * n + 2, n == CS ? 0xa9b : 0xc93, 2);
		set(SEGMENTS + 16 * n + 4, 0xffffffff, 4);
	}
	set(SAVED + 0x064, GDT_LIMIT, 4);
	set(SAVED + 0x068, GDT, 8);
	set(SAVED + 0x0d0, EFER_LME | EFER_LMA | EFER_NXE | EFER_SVME, 8);
	set(SAVED + 0x148, l1_registers.cr4, 8);
	set(SAVED + 0x150, l2_cr3, 8);
	set(SAVED + 0x158, l1_registers.cr0, 8);
	set(SAVED + 0x160, 0x400, 8);		       /* DR7 */
	set(SAVED + 0x168, 0xffff0ff0, 8);	       /* DR6 */
	set(SAVED + 0x170, RFLAGS_FIXED, 8);
	set(SAVED + 0x178, piece(op), 8);	       /* RIP */
	set(SAVED + 0x1d8, STACK, 8);		       /* RSP */
	set(SAVED + 0x1f8, value, 8);		       /* RAX */
	set(SAVED + 0x268, 0x0007040600070406, 8);     /* PAT, as after a reset */
}

/* --- Intel: the control structure, as pairs that L1 writes --- */

static int n_fields;

static void field(uint32_t encoding, uint64_t value)
{
	uint64_t *pair = at(FIELDS + 16 * n_fields++);

	pair[0] = encoding;
	pair[1] = value;
}

/* Controls: what is wanted, what must be on (the MSR's lower half), and nothing that must be off (its upper half). */
static void controls(uint32_t encoding, int number, uint32_t wanted)
{
	uint64_t allowed = msr(MSR_VMX_BASIC + number);

	field(encoding, (wanted | (uint32_t)allowed) & (uint32_t)(allowed >> 32));
}

/* KVM keeps a VMCS as a page of plain values: what was never written is zero. */
static void fill_vmcs(char op)
{
	enum { LOAD_EFER_ON_ENTRY = 1 << 15, LONG_MODE_GUEST = 1 << 9, HOST_64_BIT = 1 << 9, LOAD_EFER_ON_EXIT = 1 << 21 };
	enum { CS = 1, LDTR = 6, TR = 7, TR_SELECTOR = 0x18 };
	const uint64_t efer = EFER_LME | EFER_LMA | EFER_NXE;

	n_fields = 0;
	controls(0x4000, 1, 0);				 /* pin-based */
	controls(0x4002, 2, 1 << 7 | 1u << 31);		 /* primary: HLT; secondary controls in use */
	controls(0x401e, 11, nested_paging ? 1 << 1 : 0); /* secondary: EPT */
	controls(0x400c, 3, HOST_64_BIT | LOAD_EFER_ON_EXIT);
	controls(0x4012, 4, LONG_MODE_GUEST | LOAD_EFER_ON_ENTRY);
	field(0x4004, ~(1u << 2));			 /* every exception but NMI's */
	if (nested_paging)				 /* EPTP: four levels, write-back, accessed and dirty bits */
		field(0x201a, L2_TABLES | 3 << 3 | 6 | (accessed_dirty & msr(MSR_VMX_EPT_CAP) >> 21) << 6);
	field(0x2800, ~0ull);				 /* no linked VMCS */
	field(0x2806, efer);				 /* L2's, … */
	field(0x2c02, efer);				 /* … and L1's afterwards */
	for (int n = 0; n < 8; n++) {			 /* ES CS SS DS FS GS LDTR TR */
		uint32_t rights = n == CS ? 0xa09b : n == LDTR ? 1 << 16 : n == TR ? 0x8b : 0xc093;
		uint16_t selector = n == CS ? CODE_SELECTOR : n == LDTR ? 0 : n == TR ? TR_SELECTOR : DATA_SELECTOR;

		field(0x800 + 2 * n, selector);
		if (n != LDTR)
			field(0xc00 + 2 * (n == TR ? 6 : n), selector); /* L1's */
		field(0x4800 + 2 * n, n == TR ? 0x67 : 0xffffffff);	/* limit */
		field(0x4814 + 2 * n, rights);
	}
	field(0x4810, GDT_LIMIT);
	field(0x6816, GDT);
	field(0x6800, l1_registers.cr0);
	field(0x6802, l2_cr3);
	field(0x6804, l1_registers.cr4);
	field(0x681a, 0x400);				 /* DR7 */
	field(0x681c, STACK);				 /* RSP */
	field(0x681e, piece(op));			 /* RIP */
	field(0x6820, RFLAGS_FIXED);
	field(0x6c00, l1_registers.cr0);		 /* L1's */
	field(0x6c02, TABLES);
	field(0x6c04, l1_registers.cr4);
	field(0x6c0c, GDT);
	field(0x6c14, L1_STACK);
	field(0x6c16, L1_RETURN);
	at(POINTERS)[0] = OWN_AREA;
	at(POINTERS)[1] = CONTROL;
	for (int n = 0; n < N_READ_BACK; n++)
		at(ANSWERS)[n] = READ_BACK[n].field;
	memset(at(ANSWER_VALUES), 0, 8 * N_READ_BACK);
}

/* --- L2 --- */

/* What L1 sees of L2's exit. */
static void report_l2(void)
{
	if (intel) {
		printf(", \"vmcs12\": {");
		for (int n = 0; n < N_READ_BACK; n++)
			printf("\"%s\": \"%#" PRIx64 "\", ", READ_BACK[n].name, at(ANSWER_VALUES)[n]);
		printf("\"rax\": \"%#" PRIx64 "\"}", at(POINTERS)[2]);
	} else {
		printf(", \"vmcb12\": {\"exit_code\": \"%#" PRIx64 "\", \"exit_info_1\": \"%#" PRIx64 "\", \"exit_info_2\": \"%#" PRIx64
		       "\", \"rip\": \"%#" PRIx64 "\", \"rax\": \"%#" PRIx64 "\"}",
		       *at(CONTROL + 0x70), *at(CONTROL + 0x78), *at(CONTROL + 0x80), *at(CONTROL + 0x578), *at(CONTROL + 0x5f8));
	}
}

/* User space takes the vCPU out of L2, as a reset would: KVM_SET_NESTED_STATE says that there is none. */
static int leave(void)
{
	struct { struct kvm_nested_state head; uint8_t rest[2 * PAGE]; } state = { .head.size = sizeof(state.head) };
	int rc;

	if (intel) {
		state.head.format = KVM_STATE_NESTED_FORMAT_VMX;
		state.head.hdr.vmx.vmxon_pa = state.head.hdr.vmx.vmcs12_pa = ~0ull;
	} else {
		state.head.format = KVM_STATE_NESTED_FORMAT_SVM;
		state.head.flags = KVM_STATE_NESTED_GIF_SET;
	}
	if ((rc = ioctl(vcpu, KVM_SET_NESTED_STATE, &state)))
		return rc;
	in_l2 = vmx_on = false;
	return ioctl(vcpu, KVM_SET_SREGS, &l1_registers);
}

void op_l2leave(struct words *w)
{
	(void)w;
	result(leave());
}

void return_to_l1(void)
{
	if (in_l2)
		printf(", \"left_l2\": %d", leave());
}

void op_l2cr3(struct words *w)
{
	l2_cr3 = w->n[0];
	result(0);
}

void op_l2access(struct words *w)
{
	struct kvm_regs regs = { .rip = L1_CODE, .rsi = w->n[0], .rsp = L1_STACK, .rflags = RFLAGS_FIXED };
	char op = w->name[2];

	if (!nested) {
		printf(", \"error\": \"nest comes first\"");
		return;
	}
	return_to_l1();
	if (intel) {
		fill_vmcs(op);
		regs.rip = vmx_on ? PAST_VMXON : L1_CODE;
		regs.rax = w->n[1];
		regs.rdi = POINTERS;
		regs.rbx = FIELDS;
		regs.rcx = n_fields;
		regs.r9 = ANSWERS;
		regs.r10 = N_READ_BACK;
		vmx_on = true;
	} else {
		fill_vmcb(op, w->n[1]);
		regs.rax = CONTROL;
	}
	ioctl(vcpu, KVM_SET_REGS, &regs);
	enter("");
	if (!in_l2)
		report_l2();
}

/* KVM_RUN again, nothing changed: an access that user space was asked about is done anew. */
void op_run(struct words *w)
{
	(void)w;
	if (halted) {
		printf(", \"skipped\": \"the access is over\"");
		return;
	}
	enter("");
	if (nested && !in_l2)
		report_l2();
}
