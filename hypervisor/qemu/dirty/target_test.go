package dirty

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"understudy/epoch"
)

// The test binary plays three parts, by its first argument: the tests, the
// helper process, and the target, a process with memory that writes to it on
// command.

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "dirty-helper":
			os.Exit(HelperMain(os.Args[2:]))
		case "dirty-target":
			if err := targetMain(os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	// The race detector would make each helper and target linger for a second.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

var helperArgv = []string{"/proc/self/exe", "dirty-helper"}

// order is one line to the target: do something to pages of one memory.
type order struct {
	Do      string   // write, sysread (let the kernel write), look, loop, halt, unanchor
	Memory  int      // 0: the file, 1: anonymous
	Pages   []uint64 // which; nil with Stripe
	Stripe  uint64   // every Stripe-th page, Count of them
	Count   uint64
	Threads int
}

// memories is the target's first line: where its memories are.
type memories struct{ File, Anon uint64 }

// anonPages is the size of the target's private memory.
const anonPages = 1024

// targetMain maps descriptor 3 and some private memory and obeys orders from
// standard input, one JSON object a line, each answered by a line.
func targetMain(pages string) error {
	n, err := strconv.ParseUint(pages, 10, 64)
	if err != nil {
		return err
	}
	file, err := unix.Mmap(3, 0, int(n*epoch.PageSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	anon, err := unix.Mmap(-1, 0, anonPages*epoch.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	// With huge pages the scan would rightly report 512 pages for one write.
	if err := unix.Madvise(anon, unix.MADV_NOHUGEPAGE); err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(memories{address(file), address(anon)}); err != nil {
		return err
	}
	zero, err := os.Open("/dev/urandom")
	if err != nil {
		return err
	}
	in := json.NewDecoder(os.Stdin)
	var loop sync.WaitGroup
	halt := make(chan struct{})
	for {
		var o order
		if err := in.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		memory := [][]byte{file, anon}[o.Memory]
		for i := range o.Count {
			o.Pages = append(o.Pages, i*o.Stripe)
		}
		switch o.Do {
		case "write":
			inThreads(o, func(page uint64) { memory[page*epoch.PageSize+page%epoch.PageSize]++ })
		case "sysread":
			for _, page := range o.Pages {
				if _, err := zero.Read(memory[page*epoch.PageSize:][:64]); err != nil {
					return err
				}
			}
		case "look":
			for _, page := range o.Pages {
				sink += memory[page*epoch.PageSize]
			}
		case "loop": // write the pages round and round until "halt"
			for range max(o.Threads, 1) {
				loop.Go(func() {
					for i := 0; ; i++ {
						select {
						case <-halt:
							return
						default:
							memory[o.Pages[i%len(o.Pages)]*epoch.PageSize]++
						}
					}
				})
			}
		case "halt":
			close(halt)
			loop.Wait()
		case "unanchor":
			anchors, err := findAnchors(os.Getpid())
			if err != nil {
				return err
			}
			for _, a := range anchors {
				if err := unix.Close(a.fd); err != nil {
					return err
				}
			}
		}
		if err := out.Encode("done"); err != nil {
			return err
		}
	}
}

var sink byte

func inThreads(o order, do func(page uint64)) {
	var wg sync.WaitGroup
	n := max(o.Threads, 1)
	for i := range n {
		wg.Go(func() {
			for j := i; j < len(o.Pages); j += n {
				do(o.Pages[j])
			}
		})
	}
	wg.Wait()
}

func address(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// target is the test's side of the target process.
type target struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    *json.Encoder
	stdin io.Closer
	out   *bufio.Reader
	at    memories
	file  *os.File
	pages uint64
}

// startTarget starts a target whose file memory has the given number of
// pages, as user and group uid, and with further files open.
func startTarget(t testing.TB, pages uint64, uid uint32, also ...*os.File) *target {
	t.Helper()
	tg := &target{t: t, file: shmFile(t, pages), pages: pages}
	tg.cmd = exec.Command("/proc/self/exe", "dirty-target", fmt.Sprint(pages))
	tg.cmd.ExtraFiles = append([]*os.File{tg.file}, also...)
	tg.cmd.Stderr = os.Stderr
	if uid != 0 {
		tg.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	stdin, err := tg.cmd.StdinPipe()
	must(t, err)
	stdout, err := tg.cmd.StdoutPipe()
	must(t, err)
	must(t, tg.cmd.Start())
	t.Cleanup(tg.end)
	tg.in, tg.stdin, tg.out = json.NewEncoder(stdin), stdin, bufio.NewReader(stdout)
	must(t, json.Unmarshal([]byte(tg.line()), &tg.at))
	return tg
}

func (tg *target) line() string {
	tg.t.Helper()
	line, err := tg.out.ReadString('\n')
	must(tg.t, err)
	return line
}

// do gives one order and waits until it is done.
func (tg *target) do(o order) {
	tg.t.Helper()
	must(tg.t, tg.in.Encode(o))
	if got := strings.TrimSpace(tg.line()); got != `"done"` {
		tg.t.Fatalf("target answered %s", got)
	}
}

// end closes the target's input, at which it exits.
func (tg *target) end() {
	if tg.cmd.ProcessState != nil {
		return
	}
	_ = tg.stdin.Close()
	if err := tg.cmd.Wait(); err != nil {
		tg.t.Errorf("target: %v", err)
	}
	_ = tg.file.Close()
}

// config tracks both memories: the file's frames come first.
func (tg *target) config() Config {
	tg.t.Helper()
	regions, err := FileRegions(tg.cmd.Process.Pid, tg.file, 0)
	must(tg.t, err)
	regions = append(regions, Region{Addr: tg.at.Anon, Length: anonPages * epoch.PageSize, FirstPage: epoch.GFN(tg.pages)})
	return Config{PID: tg.cmd.Process.Pid, Helper: helperArgv, Regions: regions}
}

func (tg *target) image() uint64 { return tg.pages + anonPages }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
