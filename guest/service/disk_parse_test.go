package service

import (
	"strings"
	"testing"

	"understudy/guest/diskwork"
)

func FuzzDiskWorkRequest(f *testing.F) {
	f.Add("files=3 size=4096 every=10ms workers=2")
	f.Add("files=3 files=4")
	f.Add("size= every")
	f.Fuzz(func(t *testing.T, line string) {
		o, err := parseWork(strings.Fields(line))
		if err == nil && (o.Files < 0 || o.Files > diskwork.MaxFiles || o.Size > 16<<20 || o.Workers > diskwork.MaxWorkers || o.Every < 0) {
			t.Errorf("%q is read as %+v", line, o)
		}
	})
}
