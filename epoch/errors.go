package epoch

import "fmt"

// Reason says why an epoch was refused. Test for one with errors.Is:
//
//	if errors.Is(err, epoch.ErrReplayed) { … }
type Reason uint8

const (
	// ErrMalformed: the bytes are no epoch; whoever wrote them is broken.
	ErrMalformed Reason = iota + 1
	// ErrVersion: a version of the format this program does not speak.
	ErrVersion
	// ErrForeign: an epoch of another image, or of another history of it, or
	// for an image of another size.
	ErrForeign
	// ErrGeneration: an epoch of another generation than the one agreed on.
	ErrGeneration
	// ErrReplayed: an epoch the image already holds.
	ErrReplayed
	// ErrGap: an epoch later than the next one.
	ErrGap
	// ErrIncomplete: the epoch ended before all of it was there.
	ErrIncomplete
	// ErrCorrupt: a count or a checksum does not hold.
	ErrCorrupt
	// ErrBase: the former content of a page could not be read, or is not what
	// the sender believes. A full page (Encoder.Forget) heals it.
	ErrBase
	// ErrTooLarge: the epoch needs more memory than it is allowed.
	ErrTooLarge
	// ErrMisuse: the calls came in an order that makes no sense.
	ErrMisuse
)

func (r Reason) Error() string {
	switch r {
	case ErrMalformed:
		return "malformed"
	case ErrVersion:
		return "of an unknown version"
	case ErrForeign:
		return "foreign"
	case ErrGeneration:
		return "of another generation"
	case ErrReplayed:
		return "replayed"
	case ErrGap:
		return "not the next one"
	case ErrIncomplete:
		return "incomplete"
	case ErrCorrupt:
		return "corrupt"
	case ErrBase:
		return "built on another base"
	case ErrTooLarge:
		return "too large"
	case ErrMisuse:
		return "out of order"
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// RefusedError is the error of an epoch that was refused. Nothing of it was
// applied.
type RefusedError struct {
	Reason Reason
	Epoch  Number // 0 if the header could not be read
	Detail string // what was found, and what was wanted
	Cause  error  // the error underneath, if there is one
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("epoch %d is %s: %s", e.Epoch, e.Reason.Error(), e.Detail)
	if e.Epoch == 0 {
		s = fmt.Sprintf("epoch is %s: %s", e.Reason.Error(), e.Detail)
	}
	if e.Cause != nil {
		s += ": " + e.Cause.Error()
	}
	return s
}

// Unwrap makes errors.Is find the reason, and whatever is underneath.
func (e *RefusedError) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Reason}
	}
	return []error{e.Reason, e.Cause}
}

func refuse(r Reason, n Number, format string, args ...any) error {
	return &RefusedError{Reason: r, Epoch: n, Detail: fmt.Sprintf(format, args...)}
}
