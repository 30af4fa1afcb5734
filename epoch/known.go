package epoch

// Known are pages whose content is known by its fingerprint, so that nobody
// needs to read them.
type Known struct {
	// Key is the fingerprints' key.
	Key PrintKey
	// Pages says which pages are known; nil: none.
	Pages *PageSet
	// Prints are their fingerprints, by page; of other pages it says nothing.
	Prints []Fingerprint
}

// Has reports whether a page is known.
func (k *Known) Has(f GFN) bool { return k.Pages != nil && k.Pages.Contains(f) }
