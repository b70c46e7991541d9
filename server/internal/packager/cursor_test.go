package packager_test

import (
	"testing"

	"github.com/downlink-go/downlink/server/internal/packager"
)

func TestResume(t *testing.T) {
	t.Parallel()
	with, without := packager.Cursor(100, true), packager.Cursor(100, false)
	for _, tt := range []struct {
		name string
		data []byte
		size int64
		sha  bool
		want int64
	}{
		{"with SHA-256", with, 101, true, 100},
		{"without", without, 101, false, 100},
		{"SHA-256 that is not wanted", with, 101, false, 100},
		{"SHA-256 that is wanted", without, 101, true, 0},
		{"nothing", nil, 101, true, 0},
		{"all of it", with, 100, true, 0},
		{"cut", with[:len(with)-1], 101, true, 0},
		{"other version", append([]byte{2}, with[1:]...), 101, true, 0},
		{"header only", with[:12], 101, false, 0},
	} {
		if got := packager.Resume(tt.data, tt.size, tt.sha); got != tt.want {
			t.Errorf("%s: resumes at %d, want %d", tt.name, got, tt.want)
		}
	}
}
