package rebuild

import "understudy/epoch"

// Missing returns where the pages are to be had that are not in the image now, in
// no order. It fails with a *BadError if one of them is not to be had, and once
// the image is the hypervisor's. A page that it names may be filled at any time.
func (t *Table) Missing() ([]epoch.Reference, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.lazy:
		return nil, errLazy
	case t.bad > 0:
		return nil, t.badError()
	}
	missing := make([]epoch.Reference, 0, t.missing)
	for i := range t.entries {
		if e := &t.entries[i]; e.state != stateFree {
			missing = append(missing, e.ref)
		}
	}
	return missing, nil
}

// Key is the key of the fingerprints in references.
func (t *Table) Key() epoch.PrintKey { return t.cfg.Key }
