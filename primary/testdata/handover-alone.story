# An unprotected guest stands still; there is nobody to ask.
> start
    pass
    = alone
> lease
    resumeguest
    connect
    = alone
> handover
    pause: the guest is left to the next daemon
    end: handed over
    = ended
