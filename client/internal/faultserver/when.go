package faultserver

import (
	"net/http"
	"sync/atomic"
)

// Fault is one way to misbehave: it wraps the handler of the data host.
type Fault func(http.Handler) http.Handler

// Where has the fault hit the requests that match alone.
func Where(match func(*http.Request) bool, f Fault) Fault {
	return func(good http.Handler) http.Handler {
		bad := f(good)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if match(r) {
				bad.ServeHTTP(w, r)
			} else {
				good.ServeHTTP(w, r)
			}
		})
	}
}

// Times has the fault hit n requests, then no more.
func Times(n int, f Fault) Fault {
	var seen atomic.Int64
	return Where(func(*http.Request) bool { return seen.Add(1) <= int64(n) }, f)
}

// After has the fault leave alone the first n requests.
func After(n int, f Fault) Fault {
	var seen atomic.Int64
	return Where(func(*http.Request) bool { return seen.Add(1) > int64(n) }, f)
}

// OnURL has the fault hit the n-th signed URL that was handed out, from 1.
func OnURL(n int, f Fault) Fault {
	return Where(func(r *http.Request) bool { return urlNumber(r) == n }, f)
}

// Ranges has the fault hit the requests for a part of the file.
func Ranges(f Fault) Fault {
	return Where(func(r *http.Request) bool { return r.Header.Get("Range") != "" }, f)
}
