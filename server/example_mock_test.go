package server_test

import (
	"fmt"

	"github.com/downlink-go/downlink/server"
)

// The faults that a [server.Mock] makes, for a job by [server.MockConfig] and for
// a call by the header [server.MockFaultHeader].
func ExampleMockFaults() {
	fmt.Print(server.MockFaults())
	// Output:
	// pending=K         K calls are answered pending, without waiting, then one is not, and so on
	//   unknown-status=K  the same with "status": "queued", which the contract does not have
	//   429=K             the same with 429 and Retry-After
	//   503=K             the same with 503 and Retry-After
	//   expire=N          after N bytes of a signed URL the download is cut and the URL has expired (410)
	//   truncate=N        after N bytes of a signed URL the download is cut, once
	//   reset=N           the same, by a reset of the connection
	//   stall=N           the same, but the connection stays open and nothing more comes
	//   etag=N            after N bytes of a signed URL its ETag is another one, as if the file had been replaced
	//   no-range          ranges are ignored: 200 and the whole file instead of 206
	//   slow=N            each download is sent at N bytes a second
}
