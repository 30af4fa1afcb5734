// Package xen is what protects a Xen domain: PVH and HVM ones continuously,
// PV ones by checkpoint files. What needs Xen's libraries is in
// hypervisor/xen/xenctl, behind the build tag xen; everything here is plain Go
// and is tested without Xen.
//
// # The domains of a guest
//
// Driver makes them by the toolstack, and finds what a former process has left by
// their UUIDs, which begin with the guest's own bytes; their names say what each is
// for. Nothing is kept in files, so nothing outlives the domains. To Xen a reboot is
// the end of a domain: the Guest has the next one made in its place (life.go). The
// toolstack knows of no disk and no network device: their back ends are ours
// (devices.go), and serve only while the guest runs.
//
// # The image
//
// A domain's frames lie apart: RAM from 0 on, RAM behind 4 GiB, a few pages for
// Xen's own use below 4 GiB. Frames (frames.go) numbers those that have content,
// in ascending order: that number is the page of the image. It is made once,
// travels in the Spec. What is mapped here stays the domain's, also when a balloon has
// taken it from its memory, so the domain's size never falls; it may not grow either, so
// a balloon gets nothing back that is not mapped. The size is compared at every pause,
// and every second, and at a pause also whether the domain has put other memory in the
// place of some of its own, which changes no size (xenctl.Moves). Of such a domain, or
// one that was given memory, nothing can be made any more: it goes on from its last
// checkpoint. The firmware of an HVM domain makes memory of its own: it has done so
// when the domain is handed out, paused (xenctl.Host.Create).
//
// # Capture
//
//	Pause:    "suspend" to the guest's own event channel (or control/shutdown) ─> it
//	          shuts down with the reason "suspend", and Xen notifies us on a channel
//	          that we have made: nothing waits for xenstored's @releaseDomain
//	Collect:  XEN_DOMCTL_SHADOW_OP_CLEAN with LOGDIRTY_FINAL ─> Bitmap (frames.go)
//	          + frames that a back end has mapped for writing now (grants.go): such
//	            are marked only when they are unmapped (RULES 29)
//	          + what our own disk back end and device model touched
//	          + the xenstore and the console page, which others have mapped for good
//	Read:     all RAM is mapped once; a copy out of that mapping
//	State:    HVM parameters, TSC, HVM context, emulators' state: the tail of a
//	          libxl stream (state.go), as a restore will read it
//	Resume:   xc_domain_resume(fast): the guest's hypercall returns 1 and it goes on
//	          with the rings that it has; xenstored is told (XS_RESUME)
//
// A suspended guest must never be left so: whoever suspended it resumes or
// destroys it. A guest that does not answer is asked to forget the request, in a
// transaction, since it may answer at that very moment.
//
// An HVM domain has a device model besides, QEMU (emulator.go). It is stopped when the
// domain has suspended, and let go on with it. What it writes to the domain's memory
// it reports to Xen's log, once it is told to. It has no screen, and no device that
// reads or writes memory by itself.
//
// # Standby
//
// Nothing of libxc's restore can undo what it has begun: it applies a
// checkpoint's pages one by one. So no restore is ever given one. The backup
// starts the restore of a plain stream ahead of time, and feeds it
//
//	head (libxl header, Domain, CPU policies)          from the Spec
//	PAGE_DATA of type XALLOC for every frame           memory, without content
//
// and stops there. The restore, an ordinary one of libxl's, has made the domain
// and its memory and waits for the next record. The domain's memory is then
// mapped here, and that mapping is the image: WritePages copies committed pages
// into it, as it does into QEMU's memory file. What is committed is decided
// before, by package backup: an epoch is staged whole and verified, and a copy
// that is cut off is done again from the stage (RULES 2). At the takeover only the
// tail is left, which has been parsed and found whole when it came:
//
//	TSC_INFO, HVM_PARAMS, HVM_CONTEXT, END, EMULATOR_CONTEXT, END
//
// The toolstack starts an HVM domain's device model when it has read all of that:
// such a takeover takes as long longer.
//
// If the restore fails at that, libxl destroys its domain, and not the image:
// frames that are mapped outlive their domain. The next attempt is given a new
// domain and copies its memory from the old mapping. Of the image the tail
// itself changes only the pages that every restore makes anew (console,
// xenstore, ioreq), which Transient names and the next attempt needs not.
package xen
