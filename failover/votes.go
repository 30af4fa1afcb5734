package failover

// votes.go: raft's term and vote on the disk. raft panics when it cannot write
// them (hashicorp/raft raft.go, setCurrentTerm); a full disk would take down
// the daemon, and with it the guests it runs. So the voter stops instead: the
// goroutine of raft that asked for the write ends, nothing is answered, the
// other voters go on.

import (
	"fmt"
	"path/filepath"
	"runtime"

	"github.com/hashicorp/raft"
)

type votes struct {
	raft.StableStore
	fail func(error)
	dir  string
}

// Set implements raft.StableStore. It does not return after an error.
func (v *votes) Set(key, val []byte) error {
	if err := v.StableStore.Set(key, val); err != nil {
		v.stop(key, err)
	}
	return nil
}

// SetUint64 implements raft.StableStore. It does not return after an error.
func (v *votes) SetUint64(key []byte, val uint64) error {
	if err := v.StableStore.SetUint64(key, val); err != nil {
		v.stop(key, err)
	}
	return nil
}

func (v *votes) stop(key []byte, err error) {
	v.fail(explainStore(filepath.Join(v.dir, logFile), fmt.Errorf("write %s: %w", key, err)))
	runtime.Goexit()
}
