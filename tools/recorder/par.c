// SPDX-License-Identifier: GPL-2.0-only
/*
 * Two at once: `par A | B` runs A on vCPU 0, on the machine's first CPU, and B on the second, on vCPU 1 or as user
 * space.  Where the module hold.c is told to hold a CPU (`sh dly …`), the second party begins when the first is
 * held; without that, both begin together, and which comes first is left to the machine.
 */
#include "guest.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

/* A party: an access by a vCPU (its op has one letter), or what user space does to a page. */
struct party {
	int number, fd;
	struct kvm_run *run;
	const char *op;
	uint64_t gpa, value;
	int rc, error;
	struct kvm_regs regs;
};

static int second = -1, ready, wanted_holds;
static struct kvm_run *second_run;

void forget_second_vcpu(void)
{
	unmap_run(second_run);
	if (second >= 0)
		close(second);
	second = -1;
	second_run = NULL;
}

static int create_second_vcpu(void)
{
	struct kvm_mp_state runnable = { KVM_MP_STATE_RUNNABLE };

	if ((second = ioctl(vm, KVM_CREATE_VCPU, 1)) < 0)
		return -1;
	if (!(second_run = map_run(second)) || set_cpuid(second) || ioctl(second, KVM_SET_MP_STATE, &runnable))
		return -1;
	return ioctl(second, KVM_SET_SREGS, &l1_registers);
}

static bool is_vcpu(const struct party *p)
{
	return strlen(p->op) == 1;
}

/* One of hold.c's numbers. */
static int holds(const char *name)
{
	char path[64], text[16] = "";
	int fd;

	snprintf(path, sizeof(path), "/sys/module/hold/parameters/%s", name);
	if ((fd = open(path, O_RDONLY)) < 0)
		return 0;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	return atoi(text);
}

/* Let the other CPU go on: an emulator that runs both in turn changes over at a PAUSE. */
static void step_aside(void)
{
	__builtin_ia32_pause();
	sched_yield();
}

static int as_user_space(struct party *p)
{
	uint8_t *page = hva(p->gpa);

	if (!strcmp(p->op, "priv") || !strcmp(p->op, "shared"))
		return set_attributes(p->gpa, PAGE, !strcmp(p->op, "priv"));
	errno = EFAULT;
	if (page && !strcmp(p->op, "zap"))
		return madvise(page, PAGE, MADV_DONTNEED);
	if (page && (!strcmp(p->op, "ro") || !strcmp(p->op, "rw")))
		return mprotect(page, PAGE, PROT_READ | (strcmp(p->op, "ro") ? PROT_WRITE : 0));
	return -1;
}

static void *play_part(void *given)
{
	struct party *p = given;
	struct kvm_regs regs = { .rip = is_vcpu(p) ? piece(p->op[0]) : 0, .rsi = p->gpa, .rax = p->value,
				 .rsp = STACK + p->number * PAGE, .rflags = RFLAGS_FIXED };
	cpu_set_t own;

	CPU_ZERO(&own);
	CPU_SET(p->number, &own);
	sched_setaffinity(0, sizeof(own), &own); /* fails where there is one CPU only: then they take turns */
	if (is_vcpu(p)) {
		/* The first KVM_RUN of a thread waits until RCU has seen it: a HLT, so that it waits here and not later. */
		struct kvm_regs halt = regs;

		halt.rip = piece('h');
		ioctl(p->fd, KVM_SET_REGS, &halt);
		ioctl(p->fd, KVM_RUN, 0);
		ioctl(p->fd, KVM_SET_REGS, &regs);
		p->run->exit_reason = 0;
	}
	__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < 2)
		step_aside();
	for (int n = 0; p->number == 1 && n < 2000 && holds("held") < wanted_holds; n++)
		step_aside();
	mark("party %d: %s %#" PRIx64, p->number, p->op, p->gpa);
	if (is_vcpu(p)) {
		p->rc = ioctl(p->fd, KVM_RUN, 0);
		p->error = errno;
		ioctl(p->fd, KVM_GET_REGS, &p->regs);
	} else {
		p->rc = as_user_space(p);
		p->error = errno;
	}
	return NULL;
}

/* An emulated access is completed by the next KVM_RUN: by one that returns at once, lest a later step does it. */
static void complete_mmio(struct party *p)
{
	if (!is_vcpu(p) || p->run->exit_reason != KVM_EXIT_MMIO)
		return;
	p->run->immediate_exit = 1;
	ioctl(p->fd, KVM_RUN, 0);
	p->run->immediate_exit = 0;
}

static void report_party(const struct party *p)
{
	printf(", \"%s%d\": {\"rc\": %d, \"errno\": %d", is_vcpu(p) ? "vcpu" : "host", p->number, p->rc, p->rc < 0 ? p->error : 0);
	if (is_vcpu(p)) {
		report_exit(p->run);
		printf(", \"rip\": \"0x%llx\", \"rax\": \"0x%llx\"", p->regs.rip, p->regs.rax);
	}
	printf("}");
}

/* par OP GPA [VALUE] | OP GPA [VALUE] */
void op_par(struct words *w)
{
	struct party parties[2] = {
		{ .number = 0, .fd = vcpu, .run = run, .op = w->text[0], .gpa = w->n[1], .value = 0x1111 },
		{ .number = 1, .value = 0x2222 },
	};
	pthread_t threads[2];
	int bar = 2;

	while (bar < WORDS - 2 && strcmp(w->text[bar], "|"))
		bar++;
	if (bar == 3)
		parties[0].value = w->n[2];
	if (bar > 3 || !is_vcpu(&parties[0])) {
		printf(", \"error\": \"wanted: par OP GPA [VALUE] | OP GPA [VALUE], the first by a vCPU\"");
		return;
	}
	parties[1].op = w->text[bar + 1];
	parties[1].gpa = w->n[bar + 2];
	if (bar + 3 < WORDS && *w->text[bar + 3])
		parties[1].value = w->n[bar + 3];
	if (second < 0 && create_second_vcpu() < 0) {
		result(-1);
		return;
	}
	parties[1].fd = second;
	parties[1].run = second_run;
	count(false);
	ready = 0;
	wanted_holds = holds("left") ? holds("held") + 1 : 0;
	for (int n = 0; n < 2; n++)
		if (pthread_create(&threads[n], NULL, play_part, &parties[n]))
			fail("pthread_create");
	for (int n = 0; n < 2; n++)
		pthread_join(threads[n], NULL);
	for (int n = 0; n < 2; n++) {
		report_party(&parties[n]);
		complete_mmio(&parties[n]);
	}
	printf(", \"stats\": {");
	count(true);
	printf("}, \"rc\": 0");
}
