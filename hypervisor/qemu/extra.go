package qemu

import (
	"errors"
	"fmt"
	"strings"

	"understudy/hypervisor"
)

// An extra argument is taken only if what it adds is known to survive a
// failover: its state is in the device state, it writes only to memory that is
// tracked, and it opens no way out of the guest that nobody holds back. All
// else is refused with the reason.

// allowedDevices are the -device types that may be added.
var allowedDevices = map[string]bool{
	"virtio-rng-pci":    true,
	"virtio-rng-device": true,
	"VGA":               true,
	"qemu-xhci":         true,
	"usb-kbd":           true,
	"usb-tablet":        true,
	"pvpanic":           true,
	"pvpanic-pci":       true,
}

// allowedObjects are the -object types that may be added.
var allowedObjects = map[string]bool{
	"rng-random":  true,
	"rng-builtin": true,
}

// allowedOptions are options that shape the machine and nothing else.
var allowedOptions = map[string]bool{
	"-rtc":    true,
	"-boot":   true,
	"-uuid":   true,
	"-smbios": true,
}

// refusedDevices gives the reason for types people are likely to try; the
// first prefix that fits counts.
var refusedDevices = []struct{ prefix, why, remedy string }{
	{"vfio", "a passed-through device writes to memory and to the world by itself", "use a virtio device"},
	{"virtio-balloon", "memory that it gives back is looked for only if the configuration knows of it", "set free page reporting in the guest's configuration"},
	{"virtio-mem", "memory that comes and goes is not tracked", "give the guest its memory at start"},
	{"virtio-pmem", "a write to persistent memory is a write to a disk that nobody holds back", "use a disk"},
	{"nvdimm", "a write to persistent memory is a write to a disk that nobody holds back", "use a disk"},
	{"ivshmem", "shared memory is written by others", "use the network"},
	{"vhost-user", "a foreign back end writes to the guest's memory and to the world by itself", "use a served disk or a network card of the configuration"},
	{"vhost-", "the kernel's back end writes to the guest's memory and to the world by itself", "use a virtio device"},
	{"virtio-serial", "a serial channel is a way out that nobody holds back", "use the network"},
	{"isa-serial", "a serial port is a way out that nobody holds back", "use the console of the configuration"},
	{"virtio-blk", "only disks of the configuration are known to the engine", "add it to the guest's disks"},
	{"virtio-scsi", "only disks of the configuration are known to the engine", "add it to the guest's disks"},
	{"scsi-", "only disks of the configuration are known to the engine", "add it to the guest's disks"},
	{"ide-", "only disks of the configuration are known to the engine", "add it to the guest's disks"},
	{"nvme", "only disks of the configuration are known to the engine", "add it to the guest's disks"},
	{"usb-storage", "only disks of the configuration are known to the engine", "add it to the guest's disks"},
	{"virtio-net", "only network cards of the configuration have an egress gate", "add it to the guest's network cards"},
	{"e1000", "only network cards of the configuration have an egress gate", "add it to the guest's network cards"},
	{"rtl8139", "only network cards of the configuration have an egress gate", "add it to the guest's network cards"},
	{"usb-host", "a passed-through device talks to the world by itself", "leave it out"},
	{"isa-debug-exit", "it ends QEMU from inside the guest", "let the guest power off"},
	{"virtio-gpu", "its memory lies outside the RAM blocks that are tracked", "use VGA"},
	{"qxl", "its memory is written by its client", "use VGA"},
}

// refusedOptions gives the reason for options people are likely to try.
var refusedOptions = map[string][2]string{
	"-drive":        {"only disks of the configuration are known to the engine", "add it to the guest's disks"},
	"-blockdev":     {"only disks of the configuration are known to the engine", "add it to the guest's disks"},
	"-hda":          {"only disks of the configuration are known to the engine", "add it to the guest's disks"},
	"-cdrom":        {"only disks of the configuration are known to the engine", "add it to the guest's disks, read-only"},
	"-netdev":       {"only network cards of the configuration have an egress gate", "add it to the guest's network cards"},
	"-nic":          {"only network cards of the configuration have an egress gate", "add it to the guest's network cards"},
	"-net":          {"only network cards of the configuration have an egress gate", "add it to the guest's network cards"},
	"-serial":       {"a serial port is a way out that nobody holds back", "use the console of the configuration"},
	"-chardev":      {"a character device is a way out that nobody holds back", "use the console of the configuration"},
	"-vnc":          {"what a screen shows cannot be taken back", "use the guest's network for a remote desktop"},
	"-spice":        {"what a screen shows cannot be taken back", "use the guest's network for a remote desktop"},
	"-display":      {"what a screen shows cannot be taken back", "use the guest's network for a remote desktop"},
	"-monitor":      {"a second monitor would change the machine behind our back", "use the operator's tool"},
	"-qmp":          {"a second monitor would change the machine behind our back", "use the operator's tool"},
	"-gdb":          {"a debugger would change the guest behind our back", "leave it out"},
	"-s":            {"a debugger would change the guest behind our back", "leave it out"},
	"-bios":         {"other firmware is untried", "use the machine's own"},
	"-pflash":       {"UEFI variables are untried", "use the machine's own firmware"},
	"-watchdog":     {"a watchdog's action is untried", "leave it out"},
	"-icount":       {"counted instructions are untried", "leave it out"},
	"-plugin":       {"a plugin's state is not saved", "leave it out"},
	"-daemonize":    {"the process is ours to watch", "leave it out"},
	"-runas":        {"the account is set by the configuration", "set the user"},
	"-sandbox":      {"the sandbox is set by the engine", "leave it out"},
	"-m":            {"it is set by the configuration", "set the memory"},
	"-smp":          {"it is set by the configuration", "set the processors"},
	"-machine":      {"it is set by the configuration", "set the machine"},
	"-cpu":          {"it is set by the configuration", "set the processor"},
	"-accel":        {"it is set by the configuration", "set the accelerator"},
	"-enable-kvm":   {"it is set by the configuration", "set the accelerator"},
	"-kernel":       {"it is set by the configuration", "set the kernel"},
	"-initrd":       {"it is set by the configuration", "set the initrd"},
	"-append":       {"it is set by the configuration", "set append"},
	"-no-reboot":    {"a guest that vanishes by itself cannot be told from one that was lost", "leave it out"},
	"-global":       {"it may change what is saved", "leave it out"},
	"-set":          {"it may change what is saved", "leave it out"},
	"-readconfig":   {"what it adds is not checked", "name the devices"},
	"-incoming":     {"it is the engine's", "leave it out"},
	"-loadvm":       {"it is the engine's", "leave it out"},
	"-fw_cfg":       {"a file of this host would be missing on the other", "leave it out"},
	"-virtfs":       {"files shared with the host are not held back", "use the network"},
	"-usbdevice":    {"old way to add a USB device", "use -device"},
	"-mem-path":     {"memory is the engine's", "leave it out"},
	"-mem-prealloc": {"memory is the engine's", "leave it out"},
	"-snapshot":     {"disks are set by the configuration", "set snapshot on a disk"},
	"-S":            {"it is the engine's", "leave it out"},
	"-action":       {"what happens at the guest's end is the engine's", "leave it out"},
	"-no-shutdown":  {"what happens at the guest's end is the engine's", "leave it out"},
	"-tpmdev":       {"a TPM's state lies outside QEMU", "leave it out"},
	"-audiodev":     {"sound is a way out that nobody holds back", "leave it out"},
	"-add-fd":       {"descriptors are not known to a second QEMU", "leave it out"},
}

// checkExtra goes through extra arguments, each an option and its value.
func checkExtra(args []string) error {
	var errs []error
	for i := 0; i < len(args); i += 2 {
		option := args[i]
		if strings.HasPrefix(option, "--") {
			option = option[1:]
		}
		if !strings.HasPrefix(option, "-") || len(option) < 2 {
			errs = append(errs, fmt.Errorf("extra argument %q: want an option", args[i]))
			break
		}
		if err := checkOption(option); err != nil {
			errs = append(errs, err)
			break // whether the next is its value is not known
		}
		if i+1 == len(args) {
			errs = append(errs, fmt.Errorf("extra argument %s: its value is missing", option))
			break
		}
		kind, _, _ := strings.Cut(args[i+1], ",")
		if strings.Contains(args[i+1], "file=/") || strings.Contains(args[i+1], "splash=") {
			errs = append(errs, &hypervisor.Refusal{
				What:   fmt.Sprintf("extra argument %s %s names a file of this host", option, args[i+1]),
				Remedy: "leave it out",
			})
			continue
		}
		switch option {
		case "-device":
			errs = append(errs, checkDevice(kind, args[i+1]))
		case "-object":
			if !allowedObjects[kind] {
				errs = append(errs, &hypervisor.Refusal{
					What:   fmt.Sprintf("object %q is not known to survive a failover", kind),
					Remedy: "leave it out",
				})
			}
		}
	}
	return errors.Join(errs...)
}

func checkOption(option string) error {
	if allowedOptions[option] || option == "-device" || option == "-object" {
		return nil
	}
	if r, ok := refusedOptions[option]; ok {
		return &hypervisor.Refusal{What: fmt.Sprintf("extra argument %s: %s", option, r[0]), Remedy: r[1]}
	}
	return &hypervisor.Refusal{
		What:   fmt.Sprintf("extra argument %s is not known to survive a failover", option),
		Remedy: "leave it out",
	}
}

func checkDevice(kind, value string) error {
	if strings.HasPrefix(value, "{") {
		return fmt.Errorf("device %.60q: write it as type,key=value, not as JSON", value)
	}
	if d, ok := strings.CutPrefix(kind, "driver="); ok {
		kind = d
	}
	if allowedDevices[kind] {
		if strings.Contains(value, "romfile=") && !strings.Contains(value, "romfile=,") && !strings.HasSuffix(value, "romfile=") {
			return fmt.Errorf("device %q: its ROM is the machine's own", value)
		}
		return nil
	}
	for _, r := range refusedDevices {
		if strings.HasPrefix(kind, r.prefix) {
			return &hypervisor.Refusal{What: fmt.Sprintf("device %s: %s", kind, r.why), Remedy: r.remedy}
		}
	}
	return &hypervisor.Refusal{
		What:   fmt.Sprintf("device %s is not known to survive a failover", kind),
		Remedy: "use one that is: virtio-rng-pci, VGA, qemu-xhci, usb-kbd, usb-tablet, pvpanic",
	}
}
