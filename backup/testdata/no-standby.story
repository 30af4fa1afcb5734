# No machine can be made for the primary's guest: it is told why.
> no-standby
> hello 1
    prepare a new image
    refuse: no machine
> hello 1
    prepare a new image
