//go:build !amd64

package guest

// TSCKHz is 0: there is no such counter here.
func TSCKHz() int { return 0 }
