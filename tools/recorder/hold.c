// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hold a CPU at a place of KVM's fault path, so that another can get in between:
 *
 *   1   as kvm_mmu_page_fault() is entered: before everything
 *   2   as kvm_faultin_pfn() is entered: after the first look-up of the page's attributes, before the second
 *   3   as it returns: the page is known, nothing is mapped yet
 *   4   as fast_page_fault() is entered
 *
 * One order at a time, written to the parameter `order`: "PLACE CPU MICROSECONDS COUNT".  The parameter `held` counts
 * the times that a CPU was held, `left` how many are to come.  Both ends of a hold leave a line in the trace, which
 * kvm_pf/conformance reads.  A hold makes a race likely that is possible without it.
 */
#include <linux/kprobes.h>
#include <linux/ktime.h>
#include <linux/module.h>

static int place, cpu, microseconds;
static int left, held;
module_param(left, int, 0444);
module_param(held, int, 0444);

static int take_order(const char *order, const struct kernel_param *parameter)
{
	left = 0;
	return sscanf(order, "%i %i %i %i", &place, &cpu, &microseconds, &left) == 4 ? 0 : -EINVAL;
}
static const struct kernel_param_ops order_ops = { .set = take_order };
module_param_cb(order, &order_ops, NULL, 0200);

static void hold(int here)
{
	u64 until;

	if (here != place || left <= 0 || raw_smp_processor_id() != cpu)
		return;
	left--;
	trace_printk("pfdelay: held at %d on CPU %d for %d us\n", here, cpu, microseconds);
	held++;
	until = ktime_get_ns() + 1000ull * microseconds;
	while (ktime_get_ns() < until)
		cpu_relax();
	trace_printk("pfdelay: goes on at %d\n", here);
}

static int at_page_fault(struct kprobe *probe, struct pt_regs *regs)
{
	hold(1);
	return 0;
}

static int at_faultin(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	hold(2);
	return 0;
}

static int past_faultin(struct kretprobe_instance *instance, struct pt_regs *regs)
{
	hold(3);
	return 0;
}

static int at_fast_path(struct kprobe *probe, struct pt_regs *regs)
{
	hold(4);
	return 0;
}

static struct kprobe page_fault = { .symbol_name = "kvm_mmu_page_fault", .pre_handler = at_page_fault };
static struct kprobe fast_path = { .symbol_name = "fast_page_fault", .pre_handler = at_fast_path };
static struct kretprobe faultin[] = { /* from 6.13 on, and before */
	{ .kp.symbol_name = "kvm_mmu_faultin_pfn", .entry_handler = at_faultin, .handler = past_faultin, .maxactive = 8 },
	{ .kp.symbol_name = "kvm_faultin_pfn", .entry_handler = at_faultin, .handler = past_faultin, .maxactive = 8 },
};
static int found = -1;

static int __init hold_init(void)
{
	int error = register_kprobe(&page_fault);

	if (error)
		return error;
	error = register_kprobe(&fast_path);
	for (int n = 0; !error && found < 0 && n < ARRAY_SIZE(faultin); n++)
		if (!register_kretprobe(&faultin[n]))
			found = n;
	if (!error && found >= 0)
		return 0;
	unregister_kprobe(&page_fault);
	if (!error)
		unregister_kprobe(&fast_path);
	return error ?: -ENOENT;
}

static void __exit hold_exit(void)
{
	unregister_kprobe(&page_fault);
	unregister_kprobe(&fast_path);
	unregister_kretprobe(&faultin[found]);
}

module_init(hold_init);
module_exit(hold_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("holds a CPU at a place of KVM's fault path");
