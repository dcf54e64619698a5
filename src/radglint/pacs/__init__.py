"""radglint and a PACS: find, fetch and store over DICOMweb, send and receive over DIMSE, and answer what comes in.

    uids        what a UID may look like, and how it is called in a log
    access      where a DICOMweb server is, and who asks
    session     HTTP that stays with one server and takes only so much from it
    dicomweb    QIDO-RS, WADO-RS, STOW-RS
    tls         certificates for DIMSE
    dimse       C-ECHO and C-STORE to another node
    listening   a node that listens, with bounds on connections and PDUs
    receiver    C-STORE from other nodes, into a folder
    config      the file of `radglint watch`, with its rules
    ledger      what became of each series, on disk
    sources     where `radglint watch` sees new series; targets: where it stores results
    answering   a series to a segmentation and a report whose UIDs are known beforehand
    watching    the loop that brings a series from seen to stored, once

No patient name or ID is ever written to a log; a series is called by the first characters of a hash of its UID.
"""
