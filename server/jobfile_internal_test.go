package server

import (
	"io/fs"
	"slices"
	"testing"
)

// FuzzParseJob: whatever a job.json has, what is taken from it is within the
// rules, and nothing panics.
func FuzzParseJob(f *testing.F) {
	for _, s := range []string{
		`{"status":"running"}`,
		`{"status":"succeeded","assets":[{"role":"input","path":"a.tif","size":3,"crc32":"0badf00d"}]}`,
		`{"$schema":"job.schema.json","status":"succeeded","assets":[{"role":"output","path":"b","key":"shared/b.tif","media_type":"image/tiff"}]}`,
		`{"status":"succeeded","assets":[{"role":"output","path":"../x"}]}`,
		`{"status":"succeeded","assets":[{"role":"output","path":"x","key":"/etc/passwd"}]}`,
		`{"status":"succeeded","assets":[{"role":"input","path":"a","size":-1},{"role":"input","path":"a"}]}`,
		`{"status":"succeeded"}{"status":"failed"}`, "[", "", "null", "{\"status\":\"\xff\"}",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		job, listed, err := parseJob(data, "W/J/")
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without a text")
			}
			return
		}
		if !slices.Contains([]JobStatus{JobRunning, JobSucceeded, JobFailed}, job.Status) {
			t.Errorf("status %q", job.Status)
		}
		if !listed && len(job.Assets) > 0 {
			t.Error("assets that are not listed")
		}
		names := map[string]bool{}
		for _, a := range job.Assets {
			name := a.Role.Dir() + "/" + a.Path
			if names[name] {
				t.Errorf("%q is there twice", name)
			}
			names[name] = true
			if a.Role != Input && a.Role != Output || a.Path == "" || a.Object.Size < -1 || !fs.ValidPath(a.Object.Key) {
				t.Errorf("asset %+v", a)
			}
			if a.Checksum != nil && len(a.Checksum.SHA256) != 0 && len(a.Checksum.SHA256) != 32 {
				t.Errorf("a SHA-256 of %d bytes", len(a.Checksum.SHA256))
			}
		}
	})
}
