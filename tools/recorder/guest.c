// SPDX-License-Identifier: GPL-2.0-only
/*
 * The only process of the machine that is recorded.
 *
 * As process 1 it loads KVM, sets the probes and carries out the scenarios, each in a process of its own.  What
 * was recorded leaves by the second serial port, file after file; what was set up is printed on the first.
 *
 * A scenario is text, one operation a line.  Each is marked in the trace ("step 7: r 0x40000000") and answered by
 * one line of JSON.  README.md explains the operations; OPS below lists them.
 */
#include "guest.h"
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/io.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>

#define TRACING "/sys/kernel/tracing/"

/* --- what newer kernels understand and older headers do not have: Linux include/uapi/linux/kvm.h (v6.12) --- */

enum { VM_SW_PROTECTED = 1, SLOT_GUEST_MEMFD = 1 << 2, EXIT_MEMORY_FAULT = 39, ATTRIBUTE_PRIVATE = 1 << 3 };
enum { CAP_MEMORY_FAULT = 232, CAP_ATTRIBUTES = 233, CAP_GUEST_MEMFD = 234, CAP_VM_TYPES = 235, CAP_PRE_FAULT = 236 };

struct slot_request {
	uint32_t slot, flags;
	uint64_t gpa, size, hva, memfd_offset;
	uint32_t memfd, pad;
	uint64_t reserved[14];
};
struct attribute_request { uint64_t gpa, size, attributes, flags; };
struct memfd_request { uint64_t size, flags, reserved[6]; };
struct pre_fault_request { uint64_t gpa, size, flags, padding[5]; };
struct memory_fault { uint64_t flags, gpa, size; };

#define SET_SLOT _IOW(KVMIO, 0x49, struct slot_request)
#define SET_ATTRIBUTES _IOW(KVMIO, 0xd2, struct attribute_request)
#define CREATE_MEMFD _IOWR(KVMIO, 0xd4, struct memfd_request)
#define PRE_FAULT _IOWR(KVMIO, 0xd5, struct pre_fault_request)

/* --- files --- */

void fail(const char *what)
{
	fprintf(stderr, "recorder: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* Write a text to a file of the kernel's; say whether it was taken. */
static bool put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_APPEND);
	bool taken = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return taken;
}

/* Read a file into memory, ended by a zero; NULL if there is none. */
static char *get(const char *path)
{
	size_t length = 0, room = 1 << 16;
	char *text = malloc(room);
	int fd = open(path, O_RDONLY);
	ssize_t n = fd < 0 ? -1 : 0;

	while (fd >= 0 && (n = read(fd, text + length, room - length - 1)) > 0)
		if ((length += n) + 1 == room)
			text = realloc(text, room *= 2);
	if (fd >= 0)
		close(fd);
	if (n < 0) {
		free(text);
		return NULL;
	}
	text[length] = 0;
	return text;
}

/* --- the guest's memory: a slot at 0 with what its code needs (guest.h), gva = gpa in pages of 2M, 5G of them --- */

enum { GIGABYTES = 5 };
#define PDE_FLAGS 0x87ul /* present, writable, user, large */

/* The guest's code: each piece does one access to the address in RSI, then HLT.  Which access: README.md. */
static const struct piece { char op; uint8_t code[12]; } PIECES[] = {
	{ 'r', { 0x48, 0x8b, 0x06, 0xf4 } },					/* mov (%rsi), %rax */
	{ 'w', { 0x48, 0x89, 0x06, 0xf4 } },					/* mov %rax, (%rsi) */
	{ 'x', { 0xff, 0xe6 } },						/* jmp *%rsi */
	{ 'i', { 0xf0, 0x48, 0xff, 0x06, 0xf4 } },				/* lock incq (%rsi) */
	{ 'e', { 0x0f, 0x0b, 'k', 'v', 'm', 0x48, 0x8b, 0x06, 0xf4 } },	/* KVM emulates: mov (%rsi), %rax */
	{ 's', { 0x0f, 0x0b, 'k', 'v', 'm', 0x8e, 0xd8, 0xf4 } },		/* KVM emulates: mov %eax, %ds */
	{ 'h', { 0xf4 } },							/* HLT alone */
};
#define N_PIECES (sizeof(PIECES) / sizeof(*PIECES))

static struct slot {
	uint64_t gpa, size;
	uint8_t *hva;
	int memfd;
} slots[16];

int kvm, vm = -1, vcpu = -1;
struct kvm_run *run;
struct kvm_sregs l1_registers;
static int event = -1, marker;
static bool alignment_check;

uint8_t *hva(uint64_t gpa)
{
	for (struct slot *s = slots; s < slots + 16; s++)
		if (s->hva && gpa - s->gpa < s->size)
			return s->hva + (gpa - s->gpa);
	return NULL;
}

uint64_t piece(char op)
{
	int n = 0;

	while (PIECES[n].op != op)
		n++;
	return CODE + 16 * n;
}

/* Memory from the host, as it gives it; aligned, so that it can be of large pages. */
static uint8_t *host_memory(uint64_t size)
{
	uint8_t *raw = mmap(NULL, size + LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (raw == MAP_FAILED)
		fail("mmap");
	return (uint8_t *)(((uintptr_t)raw + LARGE - 1) & -LARGE);
}

static int set_slot(int id, uint32_t flags)
{
	struct slot *s = &slots[id];
	struct slot_request new = { id, flags, s->gpa, s->size, (uintptr_t)s->hva, .memfd = s->memfd };
	struct kvm_userspace_memory_region old = { id, flags, s->gpa, s->size, (uintptr_t)s->hva };

	return flags & SLOT_GUEST_MEMFD ? ioctl(vm, SET_SLOT, &new) : ioctl(vm, KVM_SET_USER_MEMORY_REGION, &old);
}

static void fill_base_slot(uint8_t *base)
{
	uint64_t *pml4 = (uint64_t *)(base + TABLES), *pdpt = pml4 + ENTRIES, *pd = (uint64_t *)(base + DIRECTORIES);
	uint64_t *gdt = (uint64_t *)(base + GDT);

	pml4[0] = (TABLES + PAGE) | 7;
	for (uint64_t g = 0; g < GIGABYTES; g++)
		pdpt[g] = (DIRECTORIES + g * PAGE) | 7;
	for (uint64_t n = 0; n < GIGABYTES * ENTRIES; n++)
		pd[n] = n * LARGE | PDE_FLAGS;
	gdt[CODE_SELECTOR / 8] = 0x00af9b000000ffff; /* 64-bit code */
	gdt[DATA_SELECTOR / 8] = 0x00cf93000000ffff;
	for (size_t n = 0; n < N_PIECES; n++)
		memcpy(base + CODE + 16 * n, PIECES[n].code, sizeof(PIECES[n].code));
}

/* What a vCPU shares with user space.  While it is mapped, the VM lives on. */
struct kvm_run *map_run(int fd)
{
	void *shared = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return shared == MAP_FAILED ? NULL : shared;
}

void unmap_run(struct kvm_run *shared)
{
	if (shared)
		munmap(shared, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
}

int set_cpuid(int fd)
{
	struct { struct kvm_cpuid2 head; struct kvm_cpuid_entry2 entries[128]; } cpuid = { .head.nent = 128 };

	return ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid) || ioctl(fd, KVM_SET_CPUID2, &cpuid) ? -1 : 0;
}

static int set_registers(void)
{
	struct kvm_segment code = { .limit = -1, .selector = CODE_SELECTOR, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = -1, .selector = DATA_SELECTOR, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	struct kvm_sregs s;

	if (set_cpuid(vcpu))
		return -1;
	ioctl(vcpu, KVM_GET_SREGS, &s);
	s.cr0 = CR0_LONG_MODE;
	s.cr3 = TABLES;
	s.cr4 = CR4_PAE | CR4_OSFXSR;
	s.efer = EFER_LME | EFER_LMA;
	s.gdt = (struct kvm_dtable){ .base = GDT, .limit = GDT_LIMIT };
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	l1_registers = s;
	return ioctl(vcpu, KVM_SET_SREGS, &s);
}

/* End the scenario's VM so far, if there is one: all that holds it must go, or the next one has no statistics. */
static void end_vm(void)
{
	if (vm < 0)
		return;
	forget_nesting();
	forget_second_vcpu();
	unmap_run(run);
	for (struct slot *s = slots; s < slots + 16; s++)
		if (s->hva && s->memfd >= 0)
			close(s->memfd);
	memset(slots, 0, sizeof(slots));
	close(vcpu), close(vm);
}

static int create_vm(bool sw_protected)
{
	uint8_t *base = host_memory(LARGE);

	end_vm();
	if ((vm = ioctl(kvm, KVM_CREATE_VM, sw_protected ? VM_SW_PROTECTED : 0)) < 0)
		return -1;
	madvise(base, LARGE, MADV_NOHUGEPAGE);
	fill_base_slot(base);
	slots[0] = (struct slot){ 0, LARGE, base, -1 };
	if (set_slot(0, 0) || (vcpu = ioctl(vm, KVM_CREATE_VCPU, 0)) < 0)
		return -1;
	return (run = map_run(vcpu)) ? set_registers() : -1;
}

/* --- the vCPU's statistics, of which each KVM_RUN reports the growth --- */

static const char *const STATS[] = { "pf_taken", "pf_fixed", "pf_emulate", "pf_spurious", "pf_fast", "pf_mmio_spte_created" };
enum { N_STATS = sizeof(STATS) / sizeof(*STATS) };
static long counted[N_STATS];

static long statistic(const char *name)
{
	char path[128];

	for (int whole_vm = 0; whole_vm < 2; whole_vm++) {
		char *text;
		long value;

		snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%d-%d/%s%s", getpid(), vm, whole_vm ? "" : "vcpu0/", name);
		if ((text = get(path))) {
			value = atol(text);
			free(text);
			return value;
		}
	}
	return 0;
}

void count(bool report)
{
	const char *comma = "";

	for (int n = 0; n < N_STATS; n++) {
		long now = statistic(STATS[n]);

		if (report && now != counted[n]) {
			printf("%s\"%s\": %ld", comma, STATS[n], now - counted[n]);
			comma = ", ";
		}
		counted[n] = now;
	}
}

/* --- operations --- */

int result(int rc)
{
	printf(", \"rc\": %d, \"errno\": %d", rc < 0 ? -1 : 0, rc < 0 ? errno : 0);
	return rc;
}

static void op_vm(struct words *w)
{
	if (result(create_vm(!strcmp(w->text[0], "swprot"))) < 0) {
		printf("}\n");
		exit(0); /* such a VM is not to be had: the rest has nothing to run on */
	}
	count(false);
}

static void op_slot(struct words *w)
{
	struct slot *s = &slots[w->n[0] & 15];
	const char *flags = w->text[3];
	bool huge = strstr(flags, "thp"), bind = strstr(flags, "gmem");
	uint32_t bits = strstr(flags, "ro") ? KVM_MEM_READONLY : 0;

	bits |= strstr(flags, "log") ? KVM_MEM_LOG_DIRTY_PAGES : 0;
	bits |= bind ? SLOT_GUEST_MEMFD : 0;
	if (!s->hva) {
		*s = (struct slot){ w->n[1], w->n[2], host_memory(w->n[2]), -1 };
		if (huge || strstr(flags, "small"))
			madvise(s->hva, s->size, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
		for (uint64_t at = 0; (huge || strstr(flags, "touch")) && at < s->size; at += PAGE)
			s->hva[at] = 0xf4; /* HLT */
	}
	if (bind && s->memfd < 0)
		s->memfd = ioctl(vm, CREATE_MEMFD, &(struct memfd_request){ .size = s->size });
	s->gpa = w->n[1];
	s->size = w->n[2];
	result(set_slot(s - slots, bits));
}

int set_attributes(uint64_t gpa, uint64_t size, bool private)
{
	return ioctl(vm, SET_ATTRIBUTES, &(struct attribute_request){ gpa, size, private ? ATTRIBUTE_PRIVATE : 0, 0 });
}

static void op_attr(struct words *w)
{
	result(set_attributes(w->n[0], w->n[1], !strcmp(w->text[2], "private")));
}

static void op_prefault(struct words *w)
{
	struct pre_fault_request request = { .gpa = w->n[0], .size = w->n[1] };

	result(ioctl(vcpu, PRE_FAULT, &request));
	printf(", \"left\": \"%#" PRIx64 "\"", request.size);
	count(false);
}

static void op_host(struct words *w)
{
	uint8_t *at = hva(w->n[0]);
	int rc = -1;

	errno = EFAULT;
	switch (at ? w->op : 0) {
	case 'p': *at = w->n[1]; rc = 0; break;
	case 'z': rc = madvise(at, w->n[1], MADV_DONTNEED); break;
	case 'u': rc = munmap(at, w->n[1]); break;
	case 'm': rc = mprotect(at, w->n[1], PROT_READ); break;
	}
	result(rc);
}

static void op_punch(struct words *w)
{
	result(fallocate(slots[w->n[0] & 15].memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, w->n[1], w->n[2]));
}

static void op_closegmem(struct words *w)
{
	result(close(slots[w->n[0] & 15].memfd));
	slots[w->n[0] & 15].memfd = -1;
}

static void op_cleardirty(struct words *w)
{
	static uint64_t bitmap[1 << 13];
	struct kvm_dirty_log log = { .slot = w->n[0], .dirty_bitmap = bitmap };

	result(ioctl(vm, KVM_GET_DIRTY_LOG, &log));
	printf(", \"dirty0\": \"%#" PRIx64 "\"", bitmap[0]);
}

static void op_ioeventfd(struct words *w)
{
	if (event < 0)
		event = eventfd(0, EFD_NONBLOCK);
	result(ioctl(vm, KVM_IOEVENTFD, &(struct kvm_ioeventfd){ .addr = w->n[0], .len = w->n[1], .fd = event }));
}

static void op_evread(struct words *w)
{
	uint64_t times = 0;

	(void)w;
	result(read(event, &times, sizeof(times)) < 0 ? -1 : 0);
	printf(", \"count\": %" PRIu64, times);
}

/* A guest's page-directory entry before its first use: the flags are given, the address stays gva = gpa. */
static void op_pde(struct words *w)
{
	uint64_t *directory = (uint64_t *)(slots[0].hva + DIRECTORIES);

	directory[w->n[0] / LARGE] = (w->n[0] & -LARGE) | w->n[1];
	result(0);
}

static void op_control(struct words *w)
{
	struct kvm_sregs s;

	ioctl(vcpu, KVM_GET_SREGS, &s);
	if (w->op == 's') { /* smap SMAP AC */
		s.cr4 = (s.cr4 & ~(uint64_t)CR4_SMAP) | (w->n[0] ? CR4_SMAP : 0);
		alignment_check = w->n[1];
	} else {
		s.efer = w->n[0];
	}
	l1_registers = s;
	result(ioctl(vcpu, KVM_SET_SREGS, &s));
}

/* `sh inj …`, `sh dly …`: hand the words to the module that alters error codes (inject.c), or holds a CPU (hold.c). */
static void op_sh(struct words *w)
{
	bool inject = !strcmp(w->text[0], "inj"), known = inject || !strcmp(w->text[0], "dly");
	char order[256] = "";

	for (int n = 1; n < WORDS; n++) {
		strncat(order, w->text[n], sizeof(order) - strlen(order) - 2);
		strcat(order, " ");
	}
	errno = EINVAL;
	result(known && put(inject ? "/sys/module/inject/parameters/order" : "/sys/module/hold/parameters/order", order) ? 0 : -1);
}

static const char *exit_name(uint32_t reason)
{
	switch (reason) {
	case KVM_EXIT_HLT: return "HLT";
	case KVM_EXIT_MMIO: return "MMIO";
	case KVM_EXIT_SHUTDOWN: return "SHUTDOWN";
	case KVM_EXIT_FAIL_ENTRY: return "FAIL_ENTRY";
	case KVM_EXIT_INTR: return "INTR";
	case KVM_EXIT_INTERNAL_ERROR: return "INTERNAL_ERROR";
	case EXIT_MEMORY_FAULT: return "MEMORY_FAULT";
	case KVM_EXIT_UNKNOWN: return "UNKNOWN";
	}
	return "?";
}

void report_exit(const struct kvm_run *run)
{
	printf(", \"exit\": %u, \"name\": \"%s\"", run->exit_reason, exit_name(run->exit_reason));
	if (run->exit_reason == KVM_EXIT_MMIO) {
		uint64_t data = 0;

		memcpy(&data, run->mmio.data, run->mmio.is_write ? run->mmio.len : 0);
		printf(", \"mmio\": {\"gpa\": \"0x%llx\", \"len\": %u, \"is_write\": %u, \"data\": \"0x%" PRIx64 "\"}",
		       run->mmio.phys_addr, run->mmio.len, run->mmio.is_write, data);
	} else if (run->exit_reason == EXIT_MEMORY_FAULT) {
		const struct memory_fault *fault = (const void *)&run->mmio; /* all exits' parts begin at one place */

		printf(", \"memory_fault\": {\"flags\": \"0x%" PRIx64 "\", \"gpa\": \"0x%" PRIx64 "\", \"size\": \"0x%" PRIx64 "\"}",
		       fault->flags, fault->gpa, fault->size);
	} else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		printf(", \"suberror\": %u", run->internal.suberror);
	}
}

/* Run the guest.  MMIO is answered, at most three times; anything else ends it. */
void enter(const char *prefix)
{
	static const uint64_t answer = 0x1122334455667788;
	const struct itimerval patience = { .it_value.tv_sec = 3 }, none = { 0 };

	for (int number = 0; number < 4; number++) {
		struct kvm_regs regs = { 0 };
		int rc;

		run->exit_reason = 0;
		setitimer(ITIMER_REAL, &patience, NULL);
		rc = ioctl(vcpu, KVM_RUN, 0);
		printf(", \"%srun%d\": {\"rc\": %d, \"errno\": %d", prefix, number, rc, rc < 0 ? errno : 0);
		report_exit(run);
		report_mode();
		ioctl(vcpu, KVM_GET_REGS, &regs);
		printf(", \"rip\": \"0x%llx\", \"rax\": \"0x%llx\", \"stats\": {", regs.rip, regs.rax);
		count(true);
		printf("}}");
		if (run->exit_reason != KVM_EXIT_MMIO)
			break;
		if (!run->mmio.is_write)
			memcpy(run->mmio.data, &answer, sizeof(answer));
	}
	setitimer(ITIMER_REAL, &none, NULL);
}

/* Run one piece of the guest's code. */
static void op_access(struct words *w)
{
	struct kvm_regs regs = { .rip = piece(w->op), .rsi = w->n[0], .rsp = STACK, .rflags = RFLAGS_FIXED };

	return_to_l1();
	regs.rax = w->op == 's' ? DATA_SELECTOR : w->n[1];
	regs.rflags |= alignment_check ? RFLAGS_AC : 0;
	ioctl(vcpu, KVM_SET_REGS, &regs);
	enter("");
}

static const struct { const char *name; int words; void (*carry_out)(struct words *); } OPS[] = {
	{ "vm", 1, op_vm }, { "slot", 4, op_slot }, { "attr", 3, op_attr }, { "prefault", 2, op_prefault },
	{ "r", 1, op_access }, { "w", 1, op_access }, { "x", 1, op_access }, { "i", 1, op_access },
	{ "e", 1, op_access }, { "s", 1, op_access }, { "smap", 2, op_control }, { "efer", 1, op_control },
	{ "pde", 2, op_pde }, { "poke", 2, op_host }, { "mprotro", 2, op_host }, { "unmap", 2, op_host },
	{ "zap", 2, op_host }, { "punch", 3, op_punch }, { "closegmem", 1, op_closegmem },
	{ "cleardirty", 1, op_cleardirty }, { "ioeventfd", 2, op_ioeventfd }, { "evread", 0, op_evread },
	{ "sh", 5, op_sh }, { "nest", 0, op_nest }, { "l2map", 2, op_l2map }, { "l2unmap", 1, op_l2map },
	{ "l2r", 1, op_l2access }, { "l2w", 1, op_l2access }, { "l2x", 1, op_l2access }, { "l2i", 1, op_l2access },
	{ "l2cr3", 1, op_l2cr3 }, { "l2leave", 0, op_l2leave }, { "run", 0, op_run }, { "par", 5, op_par },
};

void mark(const char *format, ...)
{
	char text[256];
	va_list values;
	int length;

	va_start(values, format);
	length = vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	if (write(marker, text, length) < 0)
		fail("trace_marker");
}

static void carry_out(int step, char *line)
{
	struct words w = { .text = { "", "", "", "", "", "", "", "" } };
	char *words = strdup(line), *name = strtok(words, " ");
	int given = 0;

	for (char *word; given < WORDS && (word = strtok(NULL, " ")); given++) {
		w.text[given] = word;
		w.n[given] = strtoull(word, NULL, 0);
	}
	w.name = name;
	w.op = name[0];
	mark("step %d: %s", step, line);
	printf("{\"step\": %d, \"op\": \"%s\"", step, line);
	for (size_t n = 0; n < sizeof(OPS) / sizeof(*OPS); n++)
		if (!strcmp(OPS[n].name, name) && given >= OPS[n].words) {
			OPS[n].carry_out(&w);
			printf("}\n");
			free(words);
			return;
		}
	printf(", \"error\": \"no such operation, or too few words\"}\n");
	free(words);
}

static void on_alarm(int number)
{
	(void)number; /* only interrupts KVM_RUN: a guest that faults for ever */
}

static void play(const char *path)
{
	char *text = get(path), *rest = text, *line;
	int step = 0;

	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	marker = open(TRACING "trace_marker", O_WRONLY);
	if (!text || marker < 0 || (kvm = open("/dev/kvm", O_RDWR)) < 0)
		fail("no scenario, trace marker or /dev/kvm");
	printf("{\"caps\": {\"api\": %d, \"vm_types\": \"%#x\", \"memory_attributes\": \"%#x\", \"guest_memfd\": %d, "
	       "\"memory_fault_info\": %d, \"pre_fault\": %d, \"readonly_mem\": %d}}\n",
	       ioctl(kvm, KVM_GET_API_VERSION, 0), ioctl(kvm, KVM_CHECK_EXTENSION, CAP_VM_TYPES),
	       ioctl(kvm, KVM_CHECK_EXTENSION, CAP_ATTRIBUTES), ioctl(kvm, KVM_CHECK_EXTENSION, CAP_GUEST_MEMFD),
	       ioctl(kvm, KVM_CHECK_EXTENSION, CAP_MEMORY_FAULT), ioctl(kvm, KVM_CHECK_EXTENSION, CAP_PRE_FAULT),
	       ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_READONLY_MEM));
	while ((line = strsep(&rest, "\n"))) {
		size_t length = strcspn(line, "#");

		while (length && isspace((unsigned char)line[length - 1]))
			length--;
		line[length] = 0;
		if (length)
			carry_out(++step, line);
	}
	mark("end");
}

/* --- process 1 --- */

/* Add to a module's parameters those that the kernel's command line has for it: "kvm_amd.npt=0". */
static void add_parameters(const char *name, char *parameters, size_t room)
{
	char *command = get("/proc/cmdline"), *rest = command, *word;
	size_t length = strlen(name);

	while ((word = strsep(&rest, " \n"))) {
		bool same = word[0] && strlen(word) > length && word[length] == '.';

		for (size_t n = 0; same && n < length; n++)
			same = word[n] == name[n] || (word[n] == '_' && name[n] == '-');
		if (same) {
			strncat(parameters, " ", room - strlen(parameters) - 1);
			strncat(parameters, word + length + 1, room - strlen(parameters) - 1);
		}
	}
	free(command);
}

/* Load a module if the kernel does not have it built in. */
static void load(const char *name)
{
	char path[64], parameters[512], *given;
	int fd;

	snprintf(path, sizeof(path), "/modules/%s.ko", name);
	if ((fd = open(path, O_RDONLY)) < 0)
		return;
	snprintf(path, sizeof(path), "/modules/%s.parameters", name);
	given = get(path);
	snprintf(parameters, sizeof(parameters), "%s", given ? given : "");
	add_parameters(name, parameters, sizeof(parameters));
	printf("recorder: module %s: %s\n", name, syscall(SYS_finit_module, fd, parameters, 0) ? strerror(errno) : "loaded");
	close(fd);
}

/* Set the probes of a list; of several with one name the first that the kernel takes. */
static void set_probes(char *list)
{
	char taken[64] = "", name[64], *line;

	while ((line = strsep(&list, "\n"))) {
		if (sscanf(line, "%*c:lab/%63s", name) != 1 || !strcmp(name, taken))
			continue;
		if (put(TRACING "dynamic_events", line)) {
			strcpy(taken, name);
			printf("recorder: %s\n", line);
		} else {
			printf("recorder: not taken: %s\n", line);
		}
	}
}

static void enable_events(char *list)
{
	char path[128], *line;

	while ((line = strsep(&list, "\n"))) {
		snprintf(path, sizeof(path), TRACING "events/%s/enable", line);
		if (*line && *line != '#' && !put(path, "1"))
			printf("recorder: no event %s\n", line);
	}
}

static void show_parameters(const char *module)
{
	char path[512];
	struct dirent **found;
	int count;

	snprintf(path, sizeof(path), "/sys/module/%s/parameters", module);
	count = scandir(path, &found, NULL, alphasort);
	for (int n = 0; n < count; n++) {
		char *value;

		snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", module, found[n]->d_name);
		if (found[n]->d_name[0] != '.' && (value = get(path)))
			printf("recorder: %s=%s", path, value);
	}
}

static FILE *out;

static void hand_out(const char *name, const char *text)
{
	fprintf(out, "=== FILE %s\n%s", name, text ? text : "");
	fflush(out);
}

static void record(const char *name)
{
	char path[300];
	int status;
	pid_t child;

	close(open(TRACING "trace", O_WRONLY | O_TRUNC)); /* empties it */
	fflush(stdout);
	if (!(child = fork())) {
		if (!freopen("/result", "w", stdout))
			fail("/result");
		snprintf(path, sizeof(path), "/scenarios/%s.scn", name);
		play(path);
		exit(0);
	}
	waitpid(child, &status, 0);
	printf("recorder: scenario %s: status %d\n", name, status);
	snprintf(path, sizeof(path), "%s.json", name);
	hand_out(path, get("/result"));
	snprintf(path, sizeof(path), "%s.trace", name);
	hand_out(path, get(TRACING "trace"));
}

static void open_port(const char *path)
{
	struct termios raw;
	int fd = open(path, O_RDWR | O_NOCTTY);

	if (fd < 0 || tcgetattr(fd, &raw))
		fail(path);
	cfmakeraw(&raw);
	cfsetspeed(&raw, B115200);
	tcsetattr(fd, TCSANOW, &raw);
	out = fdopen(fd, "w");
}

/* Bochs ends on this word at this port; elsewhere nobody listens there. */
static void end_machine(void)
{
	tcdrain(fileno(out));
	if (!iopl(3))
		for (const char *letter = "Shutdown"; *letter; letter++)
			outb(*letter, 0x8900);
	sync();
	reboot(RB_AUTOBOOT);
}

int main(void)
{
	static char log[1 << 20];
	static const char *const MODULES[] = { "irqbypass", "ccp", "kvm", "kvm-intel", "kvm-amd" };
	struct utsname system;
	struct dirent **found;
	int length, scenarios;

	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("debug", "/sys/kernel/debug", "debugfs", 0, NULL);
	mount("tracing", TRACING, "tracefs", 0, NULL);
	freopen("/dev/console", "w", stdout), freopen("/dev/console", "w", stderr);
	setvbuf(stdout, NULL, _IOLBF, 0);
	open_port("/dev/ttyS1");
	uname(&system);
	printf("recorder: kernel %s\n", system.release);
	for (size_t n = 0; n < sizeof(MODULES) / sizeof(*MODULES); n++)
		load(MODULES[n]);
	show_parameters("kvm"), show_parameters("kvm_amd"), show_parameters("kvm_intel");
	put(TRACING "buffer_size_kb", "16384");
	put(TRACING "trace_clock", "mono");
	set_probes(get("/probes"));
	/* After the probes: of two at one place the later runs first, so the probe shows the altered value. */
	load("inject"), load("hold");
	enable_events(get("/events"));
	scenarios = scandir("/scenarios", &found, NULL, versionsort); /* 10 after 9 */
	for (int n = 0; n < scenarios; n++)
		if (found[n]->d_name[0] != '.') {
			*strrchr(found[n]->d_name, '.') = 0;
			record(found[n]->d_name);
		}
	length = klogctl(3, log, sizeof(log) - 1); /* all of the kernel's log */
	log[length < 0 ? 0 : length] = 0;
	hand_out("dmesg.txt", log);
	hand_out("end", "");
	end_machine();
	return 0;
}
