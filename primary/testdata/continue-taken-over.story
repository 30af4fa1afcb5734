# It took too long: the backup has taken the guest over. It does not run here.
> continue
    hold
    = protected
> log takeover
    shut
    = yielded
> lease
    = yielded
> log activated
    end: superseded
    = ended
