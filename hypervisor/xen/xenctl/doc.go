// Package xenctl is the thin binding of Xen's libraries, and the only cgo here.
// It is nothing without the build tag xen, and needs Debian's libxen-dev of the
// very version of the host's Xen: the libraries are version-locked.
//
//	Control    libxenctrl: what a domain is, its log-dirty bitmap, context, parameters
//	Mapping    libxenforeignmemory: a domain's frames, or its grant table, in our memory
//	Moves      libxendevicemodel: whether a domain's frames are where they were
//	Channel    libxenevtchn: the two ends of a suspend
//	Toolstack  libxenlight: restore, unpause, destroy, a domain's configuration
//
// Nothing is decided here. Each method is one call of a library, or two that make
// no sense apart; each says which. What goes wrong is told in the library's own
// words (log.go). What the calls' results mean is read in package xen, which
// knows nothing of C.
//
// A Control's methods may be called from several goroutines, one at a time for
// one domain. Memory of C that is handed out belongs to its object, and is not
// to be touched after that was closed.
package xenctl
