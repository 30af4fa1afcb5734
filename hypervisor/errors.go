package hypervisor

import "errors"

// ErrNoGuest is returned by Driver.Adopt when this host holds no guest.
var ErrNoGuest = errors.New("no guest to adopt on this host")

// Refusal says why a machine cannot be protected, and what would help.
type Refusal struct {
	What   string // what was found, with its value
	Remedy string // what the operator can do
}

func (r *Refusal) Error() string { return r.What + ": " + r.Remedy }
