package servertest_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"

	"github.com/downlink-go/downlink/server"
	"github.com/downlink-go/downlink/server/servertest"
)

// The suite needs the address of a server, in whatever language it is written, a
// key and a job. It is run here against the mock, which stands for that server.
func ExampleContract() {
	mock, err := server.NewMock(server.MockConfig{Key: "a-key-of-yours", Jobs: []string{"W1/J1=2x1MB", "W1/J2=running"}})
	if err != nil {
		log.Fatal(err)
	}
	yours := httptest.NewServer(mock.Handler())
	defer yours.Close()

	findings, err := servertest.Contract(context.Background(), yours.URL, servertest.Target{
		Key: "a-key-of-yours", WorkflowID: "W1", JobID: "J1", PendingJobID: "J2",
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range findings {
		fmt.Println(f) // [status] PUT /v0/...: status 201 is not declared
	}
	fmt.Println(len(findings), "findings")
	// Output: 0 findings
}
