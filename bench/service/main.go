// The service that the benchmark's sagas call: the least HTTP/1.1 server that can keep up, since it must not be what is
// measured.  One goroutine a connection, keep-alive, bodies by Content-Length, one fixed answer to every POST.
//
//	service -port 0 [-delay 2ms]
//
// It prints "listening on 127.0.0.1:PORT".  GET /stats tells how many POSTs it answered and how many it ever held at once.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

var (
	delay    = flag.Duration("delay", 0, "how long every POST takes")
	requests atomic.Int64
	inFlight atomic.Int64
	peak     atomic.Int64
)

// About 100 bytes, as much as a request has.
const answer = `{"id":"0123456789abcdef","status":"done","note":"an answer of about one hundred bytes, as told"}`

func main() {
	port := flag.Int("port", 0, "port on 127.0.0.1; 0 picks a free one")
	flag.Parse()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(connection)
	}
}

func serve(connection net.Conn) {
	defer connection.Close()
	reader := bufio.NewReader(connection)
	reply := response(answer)
	for {
		post, length, err := readHead(reader)
		if err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, reader, length); err != nil {
			return
		}
		if post {
			work()
			_, err = connection.Write(reply)
		} else {
			_, err = connection.Write(response(stats()))
		}
		if err != nil {
			return
		}
	}
}

// readHead reads a request up to its body; it tells whether it is a POST and how long the body is.
func readHead(reader *bufio.Reader) (post bool, length int64, err error) {
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return false, 0, err
	}
	post = bytes.HasPrefix(line, []byte("POST "))
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return false, 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return post, length, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if bytes.EqualFold(name, []byte("content-length")) {
			length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			if err != nil {
				return false, 0, err
			}
		}
	}
}

func work() {
	now := inFlight.Add(1)
	for {
		highest := peak.Load()
		if now <= highest || peak.CompareAndSwap(highest, now) {
			break
		}
	}
	if *delay > 0 {
		time.Sleep(*delay)
	}
	inFlight.Add(-1)
	requests.Add(1)
}

func stats() string {
	return fmt.Sprintf(`{"requests":%d,"in_flight":%d,"peak":%d}`, requests.Load(), inFlight.Load(), peak.Load())
}

func response(body string) []byte {
	head := "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
	return []byte(fmt.Sprintf(head, len(body), body))
}
