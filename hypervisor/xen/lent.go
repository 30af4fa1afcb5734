package xen

// This file is a domain's memory as its grants lend it to the first domain's back
// ends: no hypercall, since all of the domain is mapped and its grant table, too.

import (
	"fmt"

	"understudy/epoch"
)

// Lent is what a domain has lent to us. It is read while the guest changes its
// table: an entry counts as it is when it is looked at. A guest that takes back
// what is in use harms itself alone.
type Lent struct {
	Grants Grants
	Frames *Frames
	Memory []byte // the pages of the image, in their order
}

// Grant returns the page that a reference lends to the first domain, and the page's
// number in the image. write: it must be lent for writing.
func (l Lent) Grant(ref uint32, write bool) ([]byte, epoch.GFN, error) {
	g, err := l.Grants.At(ref)
	if err != nil {
		return nil, 0, err
	}
	switch {
	case !g.Valid() || g.Domain != 0:
		return nil, 0, fmt.Errorf("grant %d lends nothing to this domain (%+v)", ref, g)
	case write && g.ReadOnly():
		return nil, 0, fmt.Errorf("grant %d lends frame %#x for reading", ref, g.Frame)
	}
	page, ok := l.Frames.Page(g.Frame)
	at := uint64(page) * epoch.PageSize
	if !ok || at+epoch.PageSize > uint64(len(l.Memory)) {
		return nil, 0, fmt.Errorf("grant %d lends frame %#x, which is no page of the guest", ref, g.Frame)
	}
	return l.Memory[at : at+epoch.PageSize : at+epoch.PageSize], page, nil
}
