// SPDX-License-Identifier: GPL-2.0-only
/*
 * Alter the code of a page fault on its way into KVM, at one of three places:
 *
 *   npf   EXITINFO1 in the VMCB, as npf_interception() is entered: what an AMD CPU would have reported
 *   ept   the exit qualification that KVM keeps, as handle_ept_violation() is entered: the same for Intel
 *   pf    the third argument of kvm_mmu_page_fault()
 *
 * One order at a time, written to the parameter `order`: "AT SET CLEAR GPA COUNT".  The next COUNT faults on GPA
 * have the bits SET set and the bits CLEAR cleared.  Each change leaves a line in the trace, which begins with the
 * name of the function that made it; kvm_pf/conformance/ftrace.py reads these lines.
 */
#include <linux/kprobes.h>
#include <linux/module.h>

#define EXITINFO1 0x78 /* AMD APM vol. 2, layout of the VMCB's control area */
#define EXITINFO2 0x80
#define GUEST_PHYSICAL_ADDRESS 0x2400ul /* Intel SDM vol. 3, encodings of VMCS fields */

static ulong vmcb; /* where struct vcpu_svm has the pointer to the VMCB */
module_param(vmcb, ulong, 0444);
static ulong qualification; /* where struct vcpu_vmx, or what stands in it, has the exit qualification */
module_param(qualification, ulong, 0444);

static char at[8];
static unsigned long long bits_set, bits_clear, gpa;
static int count;

static int take_order(const char *order, const struct kernel_param *parameter)
{
	count = 0;
	return sscanf(order, "%7s %lli %lli %lli %i", at, &bits_set, &bits_clear, &gpa, &count) == 5 ? 0 : -EINVAL;
}
static const struct kernel_param_ops order_ops = { .set = take_order };
module_param_cb(order, &order_ops, NULL, 0200);

static bool ordered(const char *here, unsigned long address)
{
	return count > 0 && address == gpa && !strcmp(at, here) && count--;
}

static unsigned long altered(unsigned long code)
{
	return (code | bits_set) & ~bits_clear;
}

static int pre_npf(struct kprobe *probe, struct pt_regs *regs)
{
	char *control = vmcb ? *(char **)(regs->di + vmcb) : NULL;
	u64 *info1 = (u64 *)(control + EXITINFO1), *info2 = (u64 *)(control + EXITINFO2);

	if (control && ordered("npf", *info2)) {
		trace_printk("pfinject: npf_interception gpa %llx exitinfo1 %llx -> %lx\n", *info2, *info1, altered(*info1));
		*info1 = altered(*info1);
	}
	return 0;
}

static int pre_ept(struct kprobe *probe, struct pt_regs *regs)
{
	ulong *code = (ulong *)(regs->di + qualification), address = 0;

	if (!qualification || !count)
		return 0;
	asm volatile("vmread %1, %0" : "=r"(address) : "r"(GUEST_PHYSICAL_ADDRESS) : "cc");
	if (ordered("ept", address)) {
		trace_printk("pfinject: handle_ept_violation gpa %lx qual %lx -> %lx\n", address, *code, altered(*code));
		*code = altered(*code);
	}
	return 0;
}

static int pre_pf(struct kprobe *probe, struct pt_regs *regs)
{
	if (ordered("pf", regs->si)) {
		trace_printk("pfinject: kvm_mmu_page_fault gpa %lx err %lx -> %lx\n", regs->si, regs->dx, altered(regs->dx));
		regs->dx = altered(regs->dx);
	}
	return 0;
}

static struct kprobe places[] = {
	{ .symbol_name = "kvm_mmu_page_fault", .pre_handler = pre_pf },
	{ .symbol_name = "npf_interception", .pre_handler = pre_npf },
	{ .symbol_name = "handle_ept_violation", .pre_handler = pre_ept },
};
static bool placed[ARRAY_SIZE(places)];

static int __init inject_init(void)
{
	for (int n = 0; n < ARRAY_SIZE(places); n++)
		placed[n] = !register_kprobe(&places[n]); /* a kernel has KVM's modules of one vendor only */
	return placed[0] ? 0 : -ENOENT;
}

static void __exit inject_exit(void)
{
	for (int n = 0; n < ARRAY_SIZE(places); n++)
		if (placed[n])
			unregister_kprobe(&places[n]);
}

module_init(inject_init);
module_exit(inject_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("alters page-fault error codes on their way into KVM");
