package server

import (
	"io"
	"net"
	"sync"
)

// limitListener accepts no more while there are so many connections open. Those
// that come then wait in the system's queue. It hands out connections that are
// still of TCP to net/http, which sends files by sendfile(2) to no others.
func limitListener(l net.Listener, most int) net.Listener {
	return &limitedListener{Listener: l, open: make(chan struct{}, most), closed: make(chan struct{})}
}

type limitedListener struct {
	net.Listener
	open   chan struct{} // holds one for every open connection
	once   sync.Once
	closed chan struct{}
}

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.open <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		<-l.open
		return nil, err
	}
	release := sync.OnceFunc(func() { <-l.open })
	if tcp, ok := conn.(*net.TCPConn); ok {
		return &limitedTCPConn{TCPConn: tcp, release: release}, nil
	}
	return &limitedConn{Conn: conn, release: release}, nil
}

func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

var _ io.ReaderFrom = (*limitedTCPConn)(nil)

type limitedTCPConn struct {
	*net.TCPConn
	release func()
}

func (c *limitedTCPConn) Close() error {
	defer c.release()
	return c.TCPConn.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
