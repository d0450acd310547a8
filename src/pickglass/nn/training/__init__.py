"""Every learned method trains here: plans and phases (plan), the loop, and the file a killed training goes on from."""
