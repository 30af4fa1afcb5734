package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "understudy"

// layers lists, for each package, the packages of this project that it may
// import: the arrows of DESIGN.md, drawn downwards. "x/..." is x and all
// beneath it; the longest entry that fits a package is its own. The adapters
// hypervisor/qemu and hypervisor/sim, and transport, stand in the list of
// nobody but cmd: there they are chosen.
var layers = map[string][]string{
	"epoch":              nil,
	"crashpoint":         nil,
	"crashpoint/history": {"clock", "egress", "epoch", "ownership"},
	"clock":              nil,
	"filestamp":          nil,
	"config":             nil,
	"ownership":          {"epoch"},
	"events":             {"clock", "epoch", "ownership"},
	"exclusion":          {"epoch"},
	"rebuild":            {"epoch", "hypervisor"},
	"disk/...":           {"clock", "crashpoint", "epoch", "exclusion", "disk/..."},

	"hypervisor":                {"epoch"},
	"hypervisor/hypervisortest": {"epoch", "hypervisor"},
	"hypervisor/qemu/...":       {"clock", "epoch", "hypervisor", "hypervisor/qemu/..."},
	"hypervisor/sim/...":        {"clock", "epoch", "hypervisor", "hypervisor/sim/..."},
	"hypervisor/xen/...":        {"clock", "epoch", "hypervisor", "hypervisor/xen/..."},

	"checkpoint": {"epoch", "hypervisor"},

	"transport/...": {"clock", "filestamp", "transport/..."},
	"egress/...":    {"clock", "epoch", "egress/..."},
	"protocol":      {"epoch", "hypervisor", "ownership"},

	"protocol/protocoltest": {"protocol"},

	"primary":  {"clock", "crashpoint", "epoch", "events", "exclusion", "hypervisor", "ownership", "protocol"},
	"backup":   {"bubble", "clock", "crashpoint", "epoch", "events", "exclusion", "hypervisor", "ownership", "protocol", "rebuild"},
	"failover": {"clock", "crashpoint", "epoch", "failover/leases", "ownership"},
	"status":   {"backup", "bubble", "checkpoint", "clock", "config", "disk", "drill", "epoch", "exclusion", "filestamp", "host", "hypervisor", "ownership", "primary", "protocol", "rebuild", "status/dashboard", "status/samples", "strike"},

	// Drills: beside the endpoint that tells of them.
	"drill": {"clock", "config", "epoch", "events", "host", "ownership", "primary"},
	"host":  {"backup", "bubble", "checkpoint", "clock", "crashpoint", "disk", "epoch", "events", "exclusion", "fencing", "hypervisor", "ownership", "primary", "protocol", "rebuild"},

	// The backup's copy, in isolation.
	"bubble":         {"epoch", "hypervisor", "rebuild"},
	"bubble/isolate": {"bubble", "netspace"},

	// Network namespaces: of what is isolated, and of laboratories.
	"netspace": nil,

	"status/statustest": nil,

	// The page's files.
	"status/dashboard": nil,

	// The guests' past, for plots.
	"status/samples": {"clock", "host", "ownership", "primary"},

	// What a drill does to a host.
	"strike": nil,

	// Making sure that a host is off.
	"fencing": {"clock"},

	// A leader's leases, pure.
	"failover/leases": {"clock", "epoch", "ownership"},

	// A view for a terminal of what the status endpoint tells.
	"top": {"host", "ownership", "primary", "status", "status/samples"},

	// The cores under simulated faults.
	"simulation": {"backup", "clock", "disk", "epoch", "exclusion", "failover/leases", "hypervisor", "ownership", "primary", "protocol", "rebuild"},

	// The model of ownership, which spin checks: it imports nothing.
	"model": nil,

	// At the top: the programs, and the demo that drives them.
	"cmd/...":  {"..."},
	"demo/...": {"..."},

	"integration/...": {"..."},
	// How it is brought onto a machine: packages, units, dashboards, and what tries them.
	"packaging/...": {"..."},

	// What tests and the demo stand on: nothing of the engine.
	"lab/...":   {"lab/...", "netspace"},
	"guest/...": {"guest/..."},
}

// TestImportsPointDown checks what go list says of the whole module. Imports of
// test files are free: a test may hold both ends.
func TestImportsPointDown(t *testing.T) {
	list := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"/...")
	out, err := list.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s: %v\n%s", list, err, exit.Stderr)
		}
		t.Fatalf("%s: %v", list, err)
	}
	imports := map[string][]string{}
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		imports[p.ImportPath] = p.Imports
	}
	if len(imports[module+"/hypervisor/qemu"]) == 0 {
		t.Fatalf("go list does not know %s/hypervisor/qemu; is this the module's own tree?", module)
	}
	for _, complaint := range checkImports(imports) {
		t.Error(complaint)
	}
}

// checkImports returns a complaint for each arrow that points up, and for each
// package that has no place.
func checkImports(imports map[string][]string) []string {
	var complaints []string
	for path, imported := range imports {
		from, ours := strings.CutPrefix(path, module+"/")
		if !ours {
			continue
		}
		allowed, known := placeOf(from)
		if !known {
			complaints = append(complaints, fmt.Sprintf("package %s has no place in the layers: give it one in integration/imports_test.go and ARCHITECTURE.md", from))
			continue
		}
		for _, path := range imported {
			to, ours := strings.CutPrefix(path, module+"/")
			if ours && !slices.ContainsFunc(allowed, func(pattern string) bool { return fits(pattern, to) }) {
				complaints = append(complaints, fmt.Sprintf("%s -> %s: this arrow does not point down; %s may import %v", from, to, from, allowed))
			}
		}
	}
	slices.Sort(complaints)
	return complaints
}

// placeOf returns what a package may import.
func placeOf(name string) (allowed []string, known bool) {
	longest := -1
	for pattern, list := range layers {
		if fits(pattern, name) && len(pattern) > longest {
			longest, allowed = len(pattern), list
		}
	}
	return allowed, longest >= 0
}

// fits reports whether a package is meant by a pattern of layers.
func fits(pattern, name string) bool {
	tree, ok := strings.CutSuffix(pattern, "...")
	if !ok {
		return pattern == name
	}
	return tree == "" || name == strings.TrimSuffix(tree, "/") || strings.HasPrefix(name, tree)
}

// TestAnArrowThatPointsUpIsNamed makes sure that the test above would see one.
func TestAnArrowThatPointsUpIsNamed(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"epoch", "clock", "epoch -> clock"},
		{"ownership", "failover", "ownership -> failover"},
		{"primary", "hypervisor/qemu", "primary -> hypervisor/qemu"},
		{"backup", "hypervisor/sim", "backup -> hypervisor/sim"},
		{"primary", "transport", "primary -> transport"},
		{"backup", "failover", "backup -> failover"},
		{"transport", "primary", "transport -> primary"},
		{"status", "hypervisor/qemu/qmp", "status -> hypervisor/qemu/qmp"},
		{"host", "config", "host -> config"},
		{"util", "epoch", "package util has no place"},
	} {
		got := checkImports(map[string][]string{module + "/" + c.from: {"fmt", module + "/" + c.to}})
		if len(got) != 1 || !strings.HasPrefix(got[0], c.want) {
			t.Errorf("%s importing %s gives %q, want %q", c.from, c.to, got, c.want)
		}
	}
	for _, c := range []struct{ from, to string }{
		{"cmd/understudyd", "hypervisor/qemu"}, {"primary", "protocol"}, {"hypervisor/qemu", "hypervisor/qemu/stream"},
		{"integration", "hypervisor/sim"}, {"guest/init", "guest"},
	} {
		if got := checkImports(map[string][]string{module + "/" + c.from: {module + "/" + c.to}}); len(got) != 0 {
			t.Errorf("%s may import %s, yet %q", c.from, c.to, got)
		}
	}
}
